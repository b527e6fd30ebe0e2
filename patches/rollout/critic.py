"""``Critic.forward`` of each generation.

In G1 and G2 it gives one value a row, as upstream's does, and the value before each token only
within the hook ``state_values``. In G3 and G4 it gives the value before each token to every caller.
Letters: B rows, A action columns, S sequence columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Optional

from coati_ext import options, tensors
from coati_ext.rollout.models import head_dtype, last_hidden_states
from coati_ext.rollout.values import of_tokens

if TYPE_CHECKING:
    from torch import Tensor


def critic_g1(
    self: Any,
    sequences: Tensor,
    action_mask: Optional[Tensor] = None,
    attention_mask: Optional[Tensor] = None,
) -> Tensor:
    """The value of each row, (B,), for G1: that of its last real token.

    Where a whole answer is one action and ``action_mask`` (B, A) tells where answers begin, it is
    the value of the last real token before the answer. A mask (B, S) leaves no column before it.
    """
    if of_tokens():
        return _values_before(self, sequences, attention_mask)
    mask = tensors.token_mask(sequences, attention_mask)
    if action_mask is not None and options("rollout").advantage == "sequence":
        prompt = sequences.size(1) - action_mask.size(1)
        if prompt > 0:
            sequences, mask = sequences[:, :prompt], mask[:, :prompt]
    return _value_at_end(self, sequences, mask)


def critic_g2(self: Any, sequences: Tensor, attention_mask: Optional[Tensor] = None) -> Tensor:
    """The value of each row, (B,), for G2: that of its last real token."""
    if of_tokens():
        return _values_before(self, sequences, attention_mask)
    return _value_at_end(self, sequences, attention_mask)


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
    hidden = last_hidden_states(self.model, input_ids, mask)
    return _valued(self, torch.cat([hidden[:, :1], hidden[:, :-1]], dim=1))


def _value_at_end(self: Any, input_ids: Tensor, attention_mask: Optional[Tensor]) -> Tensor:
    """Values (B,) of the last real token of each row, wherever its pads are."""
    from coati_ext.rollout.host import compact

    mask = tensors.token_mask(input_ids, attention_mask)
    input_ids, mask = compact(input_ids, mask)
    hidden = last_hidden_states(self.model, input_ids, mask)
    return _valued(self, hidden[:, -1])


def _valued(self: Any, hidden: Tensor) -> Tensor:
    # The value head may be fp32 on a bf16 backbone.
    values: Tensor = self.value_head(hidden.to(head_dtype(self.value_head, hidden.dtype)))
    return values.squeeze(-1)
