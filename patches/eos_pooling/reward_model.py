"""``RewardModel.forward`` of each generation: the value head at the last real token.

Letters: B rows, S sequence columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Optional

from coati_ext import announce, choice, tensors
from coati_ext.rollout.models import head_dtype, last_hidden_states
from coati_ext.rollout.scores import scaled_forward

if TYPE_CHECKING:
    from torch import Tensor


def forward_sequences(
    self: Any, sequences: Tensor, attention_mask: Optional[Tensor] = None
) -> Tensor:
    """Rewards (B,) of ids (B, S), for G1 and G2. Unlike upstream's G2, the mask is optional."""
    return _score(self, sequences, attention_mask)


def forward_input_ids(
    self: Any, input_ids: Tensor, attention_mask: Optional[Tensor] = None
) -> Tensor:
    """Rewards (B,) of ids (B, S), for G3."""
    return _score(self, input_ids, attention_mask)


def forward_with_extras(
    self: Any, input_ids: Tensor, attention_mask: Optional[Tensor] = None, **kwargs: Any
) -> Tensor:
    """Rewards (B,) of ids (B, S), for G4; arguments for rule-based reward models are ignored."""
    return _score(self, input_ids, attention_mask)


def _score(self: Any, input_ids: Tensor, attention_mask: Optional[Tensor]) -> Tensor:
    import torch

    from coati_ext.rollout.host import compact

    mask = tensors.token_mask(input_ids, attention_mask)
    input_ids, mask = compact(input_ids, mask)
    hidden = last_hidden_states(self.model, input_ids, mask)
    rows, columns = mask.shape
    positions = torch.full((rows,), columns - 1, device=mask.device)  # int64, to index with
    pooled = choice("pool_reward")(hidden, mask, positions, self)
    # The value head may be fp32 on a bf16 backbone.
    values: Tensor = self.value_head(pooled.to(head_dtype(self.value_head, pooled.dtype)))
    reward = scaled_forward(self, values.squeeze(-1))
    if not tensors.is_compiling():
        announce(
            "rows_scored",
            model=self,
            input_ids=input_ids,
            attention_mask=mask,
            positions=positions,
            reward=reward.detach(),
        )
    return reward
