from .base import BaseModel
from .critic import Critic
from .generation import generate, prepare_inputs_fn, update_model_kwargs_fn
from .lora import LoraConfig, convert_to_lora_module, lora_manager
from .loss import DpoLoss, LogExpLoss, LogSigLoss, PolicyLoss, ValueLoss
from .reward_model import RewardModel
from .utils import disable_dropout

__all__ = [
    "BaseModel",
    "Critic",
    "DpoLoss",
    "LogExpLoss",
    "LogSigLoss",
    "LoraConfig",
    "PolicyLoss",
    "RewardModel",
    "ValueLoss",
    "convert_to_lora_module",
    "disable_dropout",
    "generate",
    "lora_manager",
    "prepare_inputs_fn",
    "update_model_kwargs_fn",
]
