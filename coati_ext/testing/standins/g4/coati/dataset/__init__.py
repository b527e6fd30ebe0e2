from .conversation import Conversation, setup_conversation_template
from .loader import (
    DataCollatorForKTODataset,
    DataCollatorForPreferenceDataset,
    DataCollatorForPromptDataset,
    DataCollatorForSupervisedDataset,
    StatefulDistributedSampler,
    load_tokenized_dataset,
)
from .utils import is_rank_0

__all__ = [
    "Conversation",
    "DataCollatorForKTODataset",
    "DataCollatorForPreferenceDataset",
    "DataCollatorForPromptDataset",
    "DataCollatorForSupervisedDataset",
    "StatefulDistributedSampler",
    "is_rank_0",
    "load_tokenized_dataset",
    "setup_conversation_template",
]
