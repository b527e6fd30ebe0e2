"""Preference pairs as fixed-width tensors.

The end token is appended as text and the tokenizer then truncates on the right, so a long row
loses it (D7); padding goes to whichever side the tokenizer happens to be set to.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Iterable, List, Tuple

import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from .utils import is_rank_0


class _PairDataset(Dataset):
    def _encode(
        self, texts: Iterable[str], tokenizer: Callable, max_length: int
    ) -> Dict[str, torch.Tensor]:
        rows: List[str] = [text + self.end_token for text in texts]
        encoded = tokenizer(
            rows, max_length=max_length, padding="max_length", truncation=True, return_tensors="pt"
        )
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}

    def __len__(self) -> int:
        return len(self.chosen["input_ids"])

    def _pair(self, idx: int) -> Tuple[torch.Tensor, ...]:
        return tuple(
            side[name][idx]
            for side in (self.chosen, self.reject)
            for name in ("input_ids", "attention_mask")
        )


class RmStaticDataset(_PairDataset):
    """Pairs whose prompt is a field of its own."""

    def __init__(
        self, dataset: Any, tokenizer: Callable, max_length: int, special_token: Any = None
    ) -> None:
        super().__init__()
        self.end_token = tokenizer.eos_token if special_token is None else special_token
        rows = list(tqdm(dataset, disable=not is_rank_0()))
        chosen = [row["prompt"] + row["chosen"] for row in rows]
        reject = [row["prompt"] + row["rejected"] for row in rows]
        self.chosen = self._encode(chosen, tokenizer, max_length)
        self.reject = self._encode(reject, tokenizer, max_length)

    def __getitem__(self, idx: int) -> Tuple[torch.Tensor, ...]:
        return self._pair(idx)


class HhRlhfDataset(_PairDataset):
    """Pairs whose two texts both contain the prompt."""

    def __init__(
        self, dataset: Any, tokenizer: Callable, max_length: int, special_token: Any = None
    ) -> None:
        super().__init__()
        self.end_token = tokenizer.eos_token if special_token is None else special_token
        rows = list(tqdm(dataset, disable=not is_rank_0()))
        self.chosen = self._encode((row["chosen"] for row in rows), tokenizer, max_length)
        self.reject = self._encode((row["rejected"] for row in rows), tokenizer, max_length)

    def __getitem__(self, idx: int) -> Tuple[torch.Tensor, ...]:
        return self._pair(idx)
