"""``Actor.forward`` of G1 before v0.3.1, which returns log-probabilities, not logits.

Letters: B rows, A action columns, S sequence columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Optional

from coati_ext import tensors
from coati_ext.rollout.models import frame_inputs

from .model_utils import log_probs_of_actions

if TYPE_CHECKING:
    from torch import Tensor


def actor_g1a(
    self: Any, sequences: Tensor, num_actions: int, attention_mask: Optional[Tensor] = None
) -> Tensor:
    """The log-probabilities of the last actions, (B, A), for the actor before v0.3.1."""
    mask = tensors.token_mask(sequences, attention_mask)
    output = self.model(sequences, **frame_inputs(self.model, mask))
    return log_probs_of_actions(output, sequences, num_actions)
