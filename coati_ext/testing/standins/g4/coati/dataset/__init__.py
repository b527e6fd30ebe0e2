from .loader import (
    DataCollatorForKTODataset,
    DataCollatorForPreferenceDataset,
    DataCollatorForPromptDataset,
    DataCollatorForSupervisedDataset,
    StatefulDistributedSampler,
)
from .utils import is_rank_0

__all__ = [
    "DataCollatorForKTODataset",
    "DataCollatorForPreferenceDataset",
    "DataCollatorForPromptDataset",
    "DataCollatorForSupervisedDataset",
    "StatefulDistributedSampler",
    "is_rank_0",
]
