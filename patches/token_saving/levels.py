"""The built-in choices of ``last_hidden_states``, and which of them a backbone allows.

Letters: B rows, S sequence columns, H hidden.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Callable, Dict, Tuple
from weakref import WeakKeyDictionary

from coati_ext import hookimpl, options, tensors
from coati_ext.rollout.models import accepts, drops_out, frame_inputs

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)
_told: WeakKeyDictionary[Any, Tuple[str, str]] = WeakKeyDictionary()  # level and reason
_learnt: WeakKeyDictionary[Any, str] = WeakKeyDictionary()  # why a backbone cannot be packed


@hookimpl(specname="last_hidden_states")
def off(backbone: Any, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
    """Hidden states (B, S, H) from one forward over every column, pads included."""
    inputs = frame_inputs(backbone, attention_mask, position_ids)
    hidden: Tensor = backbone(input_ids, **inputs)["last_hidden_state"]
    return hidden


@hookimpl(specname="last_hidden_states")
def groups(
    backbone: Any, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor
) -> Tensor:
    """Hidden states (B, S, H) from up to four forwards of rows of like length."""
    from coati_ext.rollout.packing.forward import grouped_states

    if tensors.is_compiling():
        return off(backbone, input_ids, attention_mask, position_ids)
    return grouped_states(backbone, input_ids, attention_mask)


@hookimpl(specname="last_hidden_states")
def packed(
    backbone: Any, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor
) -> Tensor:
    """Hidden states (B, S, H) from one forward over the real tokens."""
    return _packed(backbone, input_ids, attention_mask, position_ids, share=False)


@hookimpl(specname="last_hidden_states")
def prefix(
    backbone: Any, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor
) -> Tensor:
    """Hidden states (B, S, H) from one forward over real tokens, those that rows share once."""
    return _packed(backbone, input_ids, attention_mask, position_ids, share=True)


def _packed(
    backbone: Any, input_ids: Tensor, mask: Tensor, position_ids: Tensor, share: bool
) -> Tensor:
    from coati_ext.rollout.packing.attending import NotPackable
    from coati_ext.rollout.packing.forward import packed_states

    if tensors.is_compiling():
        return off(backbone, input_ids, mask, position_ids)
    reason = _obstacle(backbone)
    if reason:
        raise NotPackable(reason)
    return packed_states(backbone, input_ids, mask, position_ids, share)


@hookimpl(specname="last_hidden_states")
def auto(backbone: Any, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
    """Hidden states (B, S, H) by the highest level that the backbone allows."""
    from coati_ext.rollout.packing.attending import NotPackable
    from coati_ext.rollout.packing.forward import grouped_states, packed_states

    level, reason = highest(backbone)
    if level == "off":
        return off(backbone, input_ids, attention_mask, position_ids)
    _tell(backbone, level, reason)
    if level != "groups":
        share = level == "prefix"
        try:
            return packed_states(backbone, input_ids, attention_mask, position_ids, share)
        except NotPackable as error:
            _learnt[backbone] = error.reason
            _tell(backbone, "groups", error.reason)
    return grouped_states(backbone, input_ids, attention_mask)


def _tell(backbone: Any, level: str, reason: str) -> None:
    """Log the level of a backbone, and again when it changes; the report notes it."""
    if _told.get(backbone) != (level, reason):
        _told[backbone] = level, reason
        logger.info(_sentence(backbone))


@hookimpl
def report_made(note: Callable[[str], None]) -> None:
    """Note the level that ``auto`` has found for each backbone."""
    if options("token_saving").level == "auto":
        for backbone in list(_told):
            note(_sentence(backbone))


def _sentence(backbone: Any) -> str:
    level, reason = _told[backbone]
    why = f": {reason}" if reason else ""
    return f"token_saving computes {type(backbone).__name__} by {level}{why}"


def highest(backbone: Any) -> Tuple[str, str]:
    """The highest level for a backbone as it is now, and why it is no higher.

    What a rank answers depends on the model alone, not on its batch: under Gemini all ranks have to
    make as many forwards.
    """
    if tensors.is_compiling():
        return "off", "torch.compile is tracing, where no length is known"
    reason = _learnt.get(backbone) or _obstacle(backbone)
    if reason:
        return "groups", reason
    if backbone.training and drops_out(backbone):
        return "packed", "rows that share a prompt would share its dropout"
    return "prefix", ""


def _obstacle(backbone: Any) -> str:
    """Why a backbone cannot be packed, as far as it can be told without a forward."""
    config = getattr(backbone, "config", None)
    if getattr(config, "num_hidden_layers", None) is None:
        return "it is no transformers model"
    if "forward" in vars(backbone):
        return "its forward was replaced, as by tensor parallelism"
    if not accepts(backbone, "position_ids"):
        return "it takes no position ids"
    window = getattr(config, "sliding_window", None)
    if window and getattr(config, "use_sliding_window", True):
        return f"its attention sees {window} tokens"
    scaling: Dict[str, Any] = getattr(config, "rope_scaling", None) or {}
    kind = scaling.get("rope_type", scaling.get("type", ""))
    if kind in ("dynamic", "longrope"):
        return "its rotary positions depend on the length of the batch"
    return ""
