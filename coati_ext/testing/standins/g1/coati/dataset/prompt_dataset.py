from __future__ import annotations

from typing import Any, Dict, Optional

import torch
from torch.utils.data import Dataset

from .utils import jload


class PromptDataset(Dataset):
    """Prompts of a JSON list of {"instruction": text}, padded on the tokenizer's side (D6)."""

    def __init__(
        self,
        data_path: str,
        tokenizer: Any,
        max_datasets_size: Optional[int] = None,
        max_length: int = 96,
    ) -> None:
        super().__init__()
        records = jload(data_path)
        if max_datasets_size is not None:
            records = records[:max_datasets_size]
        encoded = tokenizer(
            [record["instruction"] for record in records],
            return_tensors="pt",
            max_length=max_length,
            padding="max_length",
            truncation=True,
        )
        device = torch.cuda.current_device()
        self.keyed_prompt = {name: rows.to(device).unbind() for name, rows in encoded.items()}

    def __len__(self) -> int:
        return len(self.keyed_prompt["input_ids"])

    def __getitem__(self, i: int) -> Dict[str, torch.Tensor]:
        return {name: rows[i] for name, rows in self.keyed_prompt.items()}
