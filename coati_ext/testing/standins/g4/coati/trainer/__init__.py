from .base import OLTrainer, SLTrainer
from .dpo import DPOTrainer
from .grpo import GRPOTrainer
from .orpo import ORPOTrainer
from .ppo import PPOTrainer
from .rm import RewardModelTrainer

__all__ = [
    "DPOTrainer",
    "GRPOTrainer",
    "OLTrainer",
    "ORPOTrainer",
    "PPOTrainer",
    "RewardModelTrainer",
    "SLTrainer",
]
