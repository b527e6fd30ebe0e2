"""The built-in choices of ``pool_reward``. Letters: B rows, S sequence columns, H hidden."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coati_ext import hookimpl

if TYPE_CHECKING:
    from torch import Tensor


@hookimpl(specname="pool_reward")
def eos(hidden: Tensor, positions: Tensor) -> Tensor:
    """The hidden state at the last real token: (B, H) from (B, S, H)."""
    index = positions.view(-1, 1, 1).expand(-1, 1, hidden.size(-1))
    return hidden.gather(1, index).squeeze(1)


@hookimpl(specname="pool_reward")
def masked_mean(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """The mean hidden state of the real tokens: (B, H) from (B, S, H), summed in fp32 or wider."""
    real = attention_mask.unsqueeze(-1)
    wide = hidden if hidden.element_size() >= 4 else hidden.float()
    return (wide.masked_fill(~real, 0).sum(dim=1) / real.sum(dim=1)).to(hidden.dtype)
