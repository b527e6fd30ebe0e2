from .bloom_actor import BLOOMActor
from .bloom_critic import BLOOMCritic
from .bloom_rm import BLOOMRM

__all__ = ["BLOOMRM", "BLOOMActor", "BLOOMCritic"]
