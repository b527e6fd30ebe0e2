from .gpt_actor import GPTActor
from .gpt_critic import GPTCritic
from .gpt_rm import GPTRM

__all__ = ["GPTRM", "GPTActor", "GPTCritic"]
