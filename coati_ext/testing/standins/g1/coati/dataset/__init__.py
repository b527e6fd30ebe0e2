from .prompt_dataset import PromptDataset
from .reward_dataset import HhRlhfDataset, RmStaticDataset
from .utils import is_rank_0

__all__ = ["HhRlhfDataset", "PromptDataset", "RmStaticDataset", "is_rank_0"]
