"""Masks, left padding and position ids.

A frame is a left-padded batch layout: within a row no pad stands between real tokens. A real token
is one that is not padding. Letters: B rows, S sequence columns. Only :func:`trimmed` copies from
the GPU to the host.
"""

from __future__ import annotations

from typing import Optional, Tuple

import torch
from torch import Tensor


def token_mask(input_ids: Tensor, attention_mask: Optional[Tensor]) -> Tensor:
    """Which tokens are real: a bool mask (B, S).

    Args:
        input_ids: (B, S) integer.
        attention_mask: (B, S) bool, integer or float, non-zero where a token is real; ``None``
            means that every token is real.

    Raises:
        ValueError: the shapes differ, or a row has no real token. The second check raises only for
            CPU tensors; on CUDA ``torch._assert_async`` reports it without a synchronisation.
    """
    if input_ids.dim() != 2:
        raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}, expected (B, S)")
    if attention_mask is None:
        mask = torch.ones_like(input_ids, dtype=torch.bool)
    elif attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)} but input_ids has shape "
            f"{tuple(input_ids.shape)}: expected one mask value for each token of each row"
        )
    else:
        # A bool mask is given back as the same tensor, by which the host may know it.
        mask = attention_mask if attention_mask.dtype == torch.bool else attention_mask != 0
    _require_real_rows(mask)
    return mask


def _require_real_rows(mask: Tensor) -> None:
    if is_compiling():
        return
    if mask.device.type == "cuda":
        torch._assert_async(mask.any(dim=1).all())
    elif mask.device.type == "cpu":
        # The NumPy view shares the tensor's memory, so this check needs no .item().
        filled = mask.numpy().any(axis=1)
        if not filled.all():
            rows = (~filled).nonzero()[0].tolist()
            raise ValueError(
                f"row {', '.join(map(str, rows))} of attention_mask {tuple(mask.shape)} has no "
                "real token, so there is nothing to score: expected at least one in each row"
            )


def is_compiling() -> bool:
    """Whether ``torch.compile`` is tracing, where no number is known."""
    compiler = getattr(torch, "compiler", None)  # absent in torch 1.13
    return bool(compiler is not None and compiler.is_compiling())


def left_frame(input_ids: Tensor, mask: Tensor) -> Tuple[Tensor, Tensor]:
    """Left-pad each row: move its real tokens to the right end and keep their order.

    ``q pad a eos pad`` becomes ``pad pad q a eos``. A pad inside a row would shift the rotary
    positions of the tokens after it. Left-padded rows are returned unchanged.

    Args:
        input_ids: (B, S) integer.
        mask: (B, S) bool, true for real tokens.

    Returns:
        The ids and the mask, (B, S) each.
    """
    real = mask.long().cumsum(dim=1)
    pads = torch.arange(1, mask.size(1) + 1, device=mask.device) - real
    column = torch.where(mask, pads[:, -1:] + real, pads) - 1
    return input_ids.scatter(1, column, input_ids), mask.scatter(1, column, mask)


def trimmed(input_ids: Tensor, mask: Tensor) -> Tuple[Tensor, Tensor]:
    """Left-padded rows without the columns that are padding in every row.

    The output width depends on the data, so on CUDA one number is copied to the host.

    Args:
        input_ids: (B, S) integer.
        mask: (B, S) bool, real tokens at the right end.
    """
    filled = mask.any(dim=0)
    width = int(filled.numpy().sum() if filled.device.type == "cpu" else filled.sum())
    return input_ids[:, mask.size(1) - width :], mask[:, mask.size(1) - width :]


def without_outer_pads(input_ids: Tensor, pad_token_id: Optional[int]) -> Tensor:
    """A bool mask (B, S) for ids without one: false for the pads at the two ends of each row.

    Args:
        input_ids: (B, S) integer.
        pad_token_id: ``None`` if the tokenizer has none; then every token is real.
    """
    if pad_token_id is None:
        return torch.ones_like(input_ids, dtype=torch.bool)
    real = (input_ids != pad_token_id).long()
    return (real.cumsum(dim=1) > 0) & (real.flip(1).cumsum(dim=1).flip(1) > 0)


def position_ids(mask: Tensor) -> Tensor:
    """Position ids that count only the real tokens of a row: (B, S) int64.

    ``clip(cumsum(mask) - 1, 0)``, as Hugging Face's ``generate`` computes for left-padded prompts.
    A padded row gets the same positions as the unpadded row.
    """
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)
