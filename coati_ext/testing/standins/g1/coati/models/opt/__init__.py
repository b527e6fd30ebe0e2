from .opt_actor import OPTActor
from .opt_critic import OPTCritic
from .opt_rm import OPTRM

__all__ = ["OPTRM", "OPTActor", "OPTCritic"]
