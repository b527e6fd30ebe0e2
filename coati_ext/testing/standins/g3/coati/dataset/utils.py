from __future__ import annotations

import io
import json
from typing import Any, List, Optional

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence


def is_rank_0() -> bool:
    return dist.get_rank() == 0 if dist.is_initialized() else True


def jload(f: Any, mode: str = "r") -> Any:
    """Read JSON from a path or an open file, which is closed afterwards."""
    with f if isinstance(f, io.IOBase) else open(f, mode=mode) as stream:
        return json.load(stream)


def pad_to_max_len(
    sequence: List[torch.Tensor],
    max_length: int,
    padding_value: int,
    batch_first: bool = True,
    padding_side: str = "left",
) -> torch.Tensor:
    """Rows of unequal length to one tensor (B, max_length)."""
    if padding_side not in ("left", "right"):
        raise RuntimeError(f"`padding_side` must be `left` or `right`, not `{padding_side}`")
    left = padding_side == "left"
    rows = [row.flip(0) for row in sequence] if left else sequence
    padded = pad_sequence(rows, batch_first=batch_first, padding_value=padding_value)
    padded = F.pad(padded, (0, max_length - padded.size(1)), value=padding_value)
    return padded.flip(1) if left else padded


def chuncate_sequence(sequence: List[Any], max_length: int, dtype: Any) -> List[torch.Tensor]:
    """Rows cut on the right, whatever token that loses (D7)."""
    return [torch.Tensor(row[:max_length]).to(dtype) for row in sequence]


def find_first_occurrence_subsequence(
    seq: torch.Tensor, subseq: Optional[torch.Tensor], start_index: int = 0
) -> int:
    """The first index at which `subseq` starts in `seq`, or -1; 0 when there is no `subseq`."""
    if subseq is None:
        return 0
    width = len(subseq)
    starts = range(start_index, len(seq) - width + 1)
    return next((i for i in starts if bool((seq[i : i + width] == subseq).all())), -1)
