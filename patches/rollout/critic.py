"""``Critic.forward`` of each generation: the value before each token.

Letters: B rows, S sequence columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Optional

from coati_ext import tensors
from coati_ext.rollout.models import frame_inputs, head_dtype

if TYPE_CHECKING:
    from torch import Tensor


def critic_g1(
    self: Any,
    sequences: Tensor,
    action_mask: Optional[Tensor] = None,
    attention_mask: Optional[Tensor] = None,
) -> Tensor:
    """The value before each token, (B, S), for G1."""
    return _values_before(self, sequences, attention_mask)


def critic_g2(self: Any, sequences: Tensor, attention_mask: Optional[Tensor] = None) -> Tensor:
    """The value before each token, (B, S), for G2."""
    return _values_before(self, sequences, attention_mask)


def critic_g3(self: Any, input_ids: Tensor, attention_mask: Optional[Tensor] = None) -> Tensor:
    """The value before each token, (B, S), for G3 and G4."""
    return _values_before(self, input_ids, attention_mask)


def _values_before(self: Any, input_ids: Tensor, attention_mask: Optional[Tensor]) -> Tensor:
    """Values (B, S): column t is the value of the state before token t.

    Column 0 has no earlier state, so it holds the value after token 0. The trainers slice the last
    A columns, which gives the value before each action.
    """
    import torch

    mask = tensors.token_mask(input_ids, attention_mask)
    hidden = self.model(input_ids, **frame_inputs(self.model, mask))["last_hidden_state"]
    before = torch.cat([hidden[:, :1], hidden[:, :-1]], dim=1)
    values: Tensor = self.value_head(before.to(head_dtype(self.value_head, before.dtype)))
    return values.squeeze(-1)
