"""The built-in choices of ``last_hidden_states``. Letters: B rows, S sequence columns, H hidden."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from coati_ext import hookimpl
from coati_ext.rollout.models import frame_inputs

if TYPE_CHECKING:
    from torch import Tensor


@hookimpl(specname="last_hidden_states")
def off(backbone: Any, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
    """Hidden states (B, S, H) from one forward over every column, pads included."""
    inputs = frame_inputs(backbone, attention_mask, position_ids)
    hidden: Tensor = backbone(input_ids, **inputs)["last_hidden_state"]
    return hidden
