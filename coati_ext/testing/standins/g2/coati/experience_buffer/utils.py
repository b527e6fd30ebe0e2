from __future__ import annotations

from dataclasses import dataclass, fields
from typing import List, Optional

import torch
import torch.nn.functional as F

from coati.experience_maker.base import Experience


@dataclass
class BufferItem:
    """One row of an `Experience`: each of its fields without the batch dimension."""

    sequences: torch.Tensor
    action_log_probs: torch.Tensor
    values: torch.Tensor
    reward: torch.Tensor
    advantages: torch.Tensor
    attention_mask: Optional[torch.LongTensor]
    action_mask: Optional[torch.BoolTensor]


def split_experience_batch(experience: Experience) -> List[BufferItem]:
    rows = experience.sequences.size(0)
    columns = []
    for field in fields(BufferItem):
        value = getattr(experience, field.name)
        columns.append(value.unbind() if torch.is_tensor(value) else [value] * rows)
    assert all(len(column) == rows for column in columns)
    return [BufferItem(*row) for row in zip(*columns)]


def _zero_pad_sequences(sequences: List[torch.Tensor], side: str = "left") -> torch.Tensor:
    assert side in ("left", "right")
    width = max(len(row) for row in sequences)
    left = side == "left"
    return torch.stack(
        [F.pad(row, (width - len(row), 0) if left else (0, width - len(row))) for row in sequences]
    )


def make_experience_batch(items: List[BufferItem]) -> Experience:
    """Only per-action fields are padded; sequences of unequal width cannot be stacked (D31)."""
    batch = {}
    for field in fields(BufferItem):
        rows = [getattr(item, field.name) for item in items]
        per_action = field.name in ("action_log_probs", "action_mask")
        batch[field.name] = _zero_pad_sequences(rows) if per_action else torch.stack(rows)
    return Experience(**batch)
