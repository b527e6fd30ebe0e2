from .base import OnPolicyTrainer, SLTrainer
from .ppo import PPOTrainer
from .rm import RewardModelTrainer

__all__ = ["OnPolicyTrainer", "PPOTrainer", "RewardModelTrainer", "SLTrainer"]
