"""``__call__`` of the collators of G3 and G4. Letters: B rows, S sequence columns."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, Callable, Dict, List, Sequence

from .tokenizers import left_sided

_left_padded: ContextVar[bool] = ContextVar("left_padded", default=False)


class LeftPadded:
    """A collate function in which preference collators left-pad, however it calls them.

    An object, because a loader pickles it for its workers.
    """

    def __init__(self, collate: Callable[..., Any]) -> None:
        self.collate = collate

    def __call__(self, instances: Any) -> Any:
        """What the collate function makes of the instances."""
        before = _left_padded.set(True)
        try:
            return self.collate(instances)
        finally:
            _left_padded.reset(before)


def collate_preferences(
    original: Callable[..., Any], self: Any, instances: Sequence[Dict[str, Any]]
) -> Any:
    """Collate G3/G4 pairs; inside :class:`LeftPadded` into left-padded rows that keep their EOS.

    The rows have ``max_length`` columns.
    """
    if not _left_padded.get():
        return original(self, instances)
    rows = [dict(instance) for instance in instances]
    for answer in ("chosen", "rejected"):
        for index, row in enumerate(rows):
            ids = row[f"{answer}_input_ids"]
            for key in (f"{answer}_loss_mask", f"{answer}_input_ids"):
                row[key] = _cut(row[key], ids, index, self)
    with left_sided(self.tokenizer):
        return original(self, rows)


def collate_prompts(
    original: Callable[..., Any], self: Any, instances: Sequence[Dict[str, Any]]
) -> Any:
    """Collate G3/G4 prompts into left-padded rows of ``max_length``, masked by their lengths."""
    import torch

    rows = [
        {**instance, "input_ids": _cut(instance["input_ids"], instance["input_ids"], index, self)}
        for index, instance in enumerate(instances)
    ]
    with left_sided(self.tokenizer):
        batch = original(self, rows)
    lengths = torch.tensor([[len(row["input_ids"])] for row in rows])
    width = batch["input_ids"].size(1)
    batch["attention_mask"] = torch.arange(width) >= width - lengths
    return batch


def _cut(values: Sequence[Any], ids: Sequence[int], row: int, collator: Any) -> List[Any]:
    """The per-token values of a row cut to ``max_length``: BOS, if it has one, and its end."""
    if len(ids) == 0:
        raise ValueError(f"row {row} of the batch has no token: expected at least one")
    width = collator.max_length
    values = list(values)
    if len(ids) <= width:
        return values
    head = 1 if ids[0] == collator.tokenizer.bos_token_id and width > 1 else 0
    return values[:head] + values[len(values) - (width - head) :]
