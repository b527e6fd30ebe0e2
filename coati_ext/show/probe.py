"""Which columns a reward model or critic reads, found by running its forward.

Its backbone is replaced by one that gives each cell a number of its own: what comes out tells, by
its value or by its gradient, which cells went in. So upstream's function says itself what it does.

Letters: B rows, S columns of what the backbone is fed.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, Dict, Iterator, List, Optional

import torch
from torch import Tensor, nn

from coati_ext.rollout.models import attributes


@dataclass(frozen=True)
class Call:
    """One forward of a model with a value head."""

    input_ids: Tensor
    """(B, S) as the backbone got them."""
    attention_mask: Tensor
    """(B, S) bool."""
    weights: Optional[Tensor]
    """(B, S): how much of each cell is in the value of its row; none where each cell has one."""

    def fed_as(self, other: Call) -> bool:
        """Whether another model was fed the same."""
        mine, theirs = ((it.input_ids, it.attention_mask) for it in (self, other))
        return all(map(torch.equal, mine, theirs))

    def cells(self, values: Tensor) -> Tensor:
        """The columns that values were read at, of the same shape; -1 for none.

        Args:
            values: of the rows of this call, (B,) or (B, A), as the model gave them.
        """
        width = self.input_ids.size(1)
        cell = values.detach().round().long() - 1
        return torch.where(cell >= 0, cell % width, cell.new_full((), -1))


@contextmanager
def traced(model: Any) -> Iterator[List[Call]]:
    """The calls of a reward model or critic of the importable coati, as they are made."""
    calls: List[Call] = []
    backbone = _Numbered()
    model.model, model.value_head = backbone, nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.value_head.weight)

    @wraps(type(model).forward)
    def forward(*args: Any, **kwargs: Any) -> Any:
        with torch.enable_grad():
            found = type(model).forward(model, *args, **kwargs)
            weights = None
            if found.dim() == 1:
                (gradient,) = torch.autograd.grad(found.sum(), backbone.hidden, retain_graph=True)
                weights = gradient.squeeze(-1)
        calls.append(Call(backbone.input_ids, backbone.mask, weights))
        return found if torch.is_grad_enabled() else found.detach()

    with attributes(model, forward=forward):
        yield calls


class _Numbered(nn.Module):
    """A backbone whose hidden state, of size 1, is the number of its cell, from 1 on."""

    hidden: Tensor
    input_ids: Tensor
    mask: Tensor

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Optional[Tensor] = None,
        position_ids: Optional[Tensor] = None,
        **_: Any,
    ) -> Dict[str, Tensor]:
        """Hidden states (B, S, 1)."""
        self.input_ids = input_ids
        self.mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        self.mask = self.mask != 0
        numbers = torch.arange(1, input_ids.numel() + 1, dtype=torch.float)
        self.hidden = numbers.view(*input_ids.shape, 1).requires_grad_()
        return {"last_hidden_state": self.hidden}
