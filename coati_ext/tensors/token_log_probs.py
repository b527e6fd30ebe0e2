"""Log-probabilities of tokens from hidden states, without a tensor of all logits.

The vocabulary is walked in tiles with an online logsumexp: Milakov and Gimelshein, "Online
normalizer calculation for softmax" (arXiv 1805.02867). Backward computes each tile again, as in
Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models" (arXiv 2411.09009).

Letters: T tokens, H hidden size, V vocabulary, W columns of a tile.
"""

from __future__ import annotations

from typing import Any, Iterator, Optional, Tuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

# Logits that are held at once. A tile of 16 MB stays near the cache of a CPU; a GPU wants few
# kernels.
_HELD = {"cpu": 2**22}
_HELD_ELSEWHERE = 2**26
_NARROWEST = 256


def head_log_probs(hidden: Tensor, weight: Tensor, bias: Optional[Tensor], ids: Tensor) -> Tensor:
    """The log-probability of a token at each hidden state: (T,) float32, or float64 of float64.

    Logits are those of ``linear(hidden, weight, bias)``, in its dtype and under its autocast. They
    are widened to float32 before the logsumexp. Gradients reach ``hidden``, ``weight`` and
    ``bias``, once: there is no second derivative.

    Args:
        hidden: (T, H) floating point.
        weight: (V, H) of the same dtype.
        bias: (V,) of the same dtype, or none.
        ids: (T,) integer, from 0 to V - 1.
    """
    with torch.no_grad():  # under autocast another dtype than that of the arguments
        dtype = linear(hidden[:0], weight[:1]).dtype
    cast = (None if item is None else item.to(dtype) for item in (hidden, weight, bias))
    log_probs: Tensor = _HeadLogProbs.apply(*cast, ids)  # type: ignore[no-untyped-call]
    return log_probs


class _HeadLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Optional[Tensor], ids: Tensor
    ) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        peak = hidden.new_full(ids.shape, torch.finfo(wide).min, dtype=wide)
        total, chosen = torch.zeros_like(peak), torch.zeros_like(peak)
        for start, end in _tiles(hidden, weight):
            logits = _logits(hidden, weight, bias, start, end).to(wide)
            index, inside = _within(ids, start, end)
            chosen = torch.where(inside, logits.gather(1, index).squeeze(1), chosen)
            higher = torch.maximum(peak, logits.amax(dim=1))
            part = logits.sub_(higher.unsqueeze(1)).exp_().sum(dim=1)
            total = total * (peak - higher).exp() + part
            peak = higher
            del logits, index, inside  # not held while the next tile is computed
        ctx.save_for_backward(hidden, weight, bias, ids, peak, total)
        return (chosen - peak) - total.log()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tuple[Optional[Tensor], ...]:
        hidden, weight, bias, ids, peak, total = ctx.saved_tensors
        to_hidden, to_weight, to_bias, _ = ctx.needs_input_grad
        hidden_grad = torch.zeros_like(hidden, dtype=peak.dtype) if to_hidden else None
        weight_grad = torch.empty_like(weight) if to_weight else None
        bias_grad = torch.empty_like(bias) if to_bias else None
        gradient, peak = gradients[0].unsqueeze(1), peak.unsqueeze(1)
        share = -gradient / total.unsqueeze(1)
        for start, end in _tiles(hidden, weight):
            logits = _logits(hidden, weight, bias, start, end).to(peak.dtype)
            index, inside = _within(ids, start, end)
            # Now the gradient of the logits: one-hot minus probabilities, times what comes in.
            logits.sub_(peak).exp_().mul_(share)
            logits.scatter_add_(1, index, gradient * inside.unsqueeze(1))
            if bias_grad is not None:
                bias_grad[start:end] = logits.sum(dim=0)
            logits = logits.to(hidden.dtype)
            if hidden_grad is not None:
                _add_product(hidden_grad, logits, weight[start:end])
            if weight_grad is not None:
                torch.mm(logits.t(), hidden, out=weight_grad[start:end])
            del logits, index, inside  # as in the forward
        if hidden_grad is not None:
            hidden_grad = hidden_grad.to(hidden.dtype)
        return hidden_grad, weight_grad, bias_grad, None


def _tiles(hidden: Tensor, weight: Tensor) -> Iterator[Tuple[int, int]]:
    """The first and last column, exclusive, of each tile of the vocabulary."""
    held = _HELD.get(hidden.device.type, _HELD_ELSEWHERE)
    width = max(_NARROWEST, held // max(1, hidden.size(0)))
    for start in range(0, weight.size(0), width):
        yield start, min(start + width, weight.size(0))


def _logits(hidden: Tensor, weight: Tensor, bias: Optional[Tensor], start: int, end: int) -> Tensor:
    # Backward may run inside of an autocast that forward did not.
    with torch.autocast(hidden.device.type, enabled=False):
        return linear(hidden, weight[start:end], None if bias is None else bias[start:end])


def _within(ids: Tensor, start: int, end: int) -> Tuple[Tensor, Tensor]:
    """The column of each id in a tile, (T, 1), and whether it is in there at all, (T,)."""
    return (ids - start).clamp(0, end - start - 1).unsqueeze(1), (ids >= start) & (ids < end)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total.add_(left @ right)
