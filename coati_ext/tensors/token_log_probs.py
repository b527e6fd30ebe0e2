"""Log-probabilities of tokens from hidden states, without a tensor of all logits.

Letters: T tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any, Iterator, Optional, Tuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

# Logits held at once: 16 MB in float32 on a CPU, 256 MB on a GPU, whose kernels want more.
_LOGITS = {"cpu": 2**22}
_LOGITS_ELSEWHERE = 2**26
_NARROWEST = 256


def head_log_probs(hidden: Tensor, weight: Tensor, bias: Optional[Tensor], ids: Tensor) -> Tensor:
    """The log-probability of each token under a linear head: (T,).

    The logit minus the logsumexp, as :func:`coati_ext.tensors.selected_log_probs`, but over tiles of
    the vocabulary with a running maximum and sum (Milakov and Gimelshein, arXiv 1805.02867). The
    backward computes each tile again, as in Cut Cross-Entropy (arXiv 2411.09009), so that no (T, V)
    tensor is kept. Logits are of the head's dtype; sums are float32, or wider for wider logits.

    Args:
        hidden: (T, H) floating point.
        weight: (V, H).
        bias: (V,) or ``None``.
        ids: (T,) integer.
    """
    if torch.is_autocast_enabled() and hidden.is_cuda:
        narrow = torch.get_autocast_gpu_dtype()
        hidden, weight = hidden.to(narrow), weight.to(narrow)
        bias = None if bias is None else bias.to(narrow)
    found: Tensor = _HeadLogProbs.apply(hidden, weight, bias, ids)
    return found


class _HeadLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Optional[Tensor], ids: Tensor
    ) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        picked = torch.zeros(ids.shape, dtype=wide, device=hidden.device)
        total = torch.full_like(picked, float("-inf"))
        for first, logits in _tiles(hidden, weight, bias):
            inside, column = _within(ids, first, logits.size(1))
            logit = logits.gather(1, column).squeeze(1).to(wide)
            picked = torch.where(inside, logit, picked)
            total = torch.logaddexp(total, _log_sum_exp(logits, wide))
        ctx.save_for_backward(hidden, weight, bias, ids, total)
        return picked - total

    @staticmethod
    @once_differentiable  # type: ignore[misc]
    def backward(ctx: Any, gradient: Tensor) -> Tuple[Optional[Tensor], ...]:
        hidden, weight, bias, ids, total = ctx.saved_tensors
        needed = ctx.needs_input_grad
        of_hidden = torch.zeros_like(hidden, dtype=gradient.dtype) if needed[0] else None
        of_weight = torch.empty_like(weight) if needed[1] else None
        of_bias = torch.empty_like(bias) if bias is not None and needed[2] else None
        for first, logits in _tiles(hidden, weight, bias):
            width = logits.size(1)
            # d log p(id) / d logits = [is the id] - softmax
            slope = logits.to(gradient.dtype).sub_(total[:, None]).exp_().mul_(-gradient[:, None])
            inside, column = _within(ids, first, width)
            slope.scatter_add_(1, column, (gradient * inside)[:, None])
            narrow = slope.to(hidden.dtype)
            tile = slice(first, first + width)
            if of_hidden is not None:
                of_hidden += narrow @ weight[tile]
            if of_weight is not None:
                torch.mm(narrow.t(), hidden, out=of_weight[tile])
            if of_bias is not None:
                of_bias[tile] = slope.sum(dim=0).to(bias.dtype)
        if of_hidden is not None:
            of_hidden = of_hidden.to(hidden.dtype)
        return of_hidden, of_weight, of_bias, None


def _tiles(
    hidden: Tensor, weight: Tensor, bias: Optional[Tensor]
) -> Iterator[Tuple[int, Tensor]]:
    """The logits of one tile of the vocabulary after another, each with its first token."""
    budget = _LOGITS.get(hidden.device.type, _LOGITS_ELSEWHERE)
    width = max(_NARROWEST, budget // max(hidden.size(0), 1))
    for first in range(0, weight.size(0), width):
        tile = slice(first, first + width)
        yield first, linear(hidden, weight[tile], None if bias is None else bias[tile])


def _within(ids: Tensor, first: int, width: int) -> Tuple[Tensor, Tensor]:
    """Which tokens lie in a tile, (T,), and their columns in it, (T, 1)."""
    column = ids - first
    inside = (column >= 0) & (column < width)
    return inside, column.clamp(0, width - 1).unsqueeze(1)


def _log_sum_exp(logits: Tensor, wide: torch.dtype) -> Tensor:
    """(T,) of a tile, which is overwritten."""
    logits = logits.to(wide)
    most = logits.amax(dim=1, keepdim=True)
    return logits.sub_(most).exp_().sum(dim=1).log_() + most.squeeze(1)
