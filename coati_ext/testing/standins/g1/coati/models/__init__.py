from .base import Actor, Critic, RewardModel
from .lora import LoRAModule, convert_to_lora_module
from .loss import LogExpLoss, LogSigLoss, PolicyLoss, ValueLoss

__all__ = [
    "Actor",
    "Critic",
    "LoRAModule",
    "LogExpLoss",
    "LogSigLoss",
    "PolicyLoss",
    "RewardModel",
    "ValueLoss",
    "convert_to_lora_module",
]
