from .base import OLTrainer, SLTrainer
from .dpo import DPOTrainer
from .orpo import ORPOTrainer
from .ppo import PPOTrainer
from .rm import RewardModelTrainer

__all__ = [
    "DPOTrainer",
    "OLTrainer",
    "ORPOTrainer",
    "PPOTrainer",
    "RewardModelTrainer",
    "SLTrainer",
]
