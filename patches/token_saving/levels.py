"""The built-in choices of ``last_hidden_states``, and which of them a backbone allows.

Letters: B rows, S sequence columns, H hidden.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Callable, Dict, Tuple
from weakref import WeakKeyDictionary, WeakSet

from coati_ext import hookimpl, options, tensors
from coati_ext.rollout.models import accepts, drops_out, frame_inputs

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)
_told: WeakKeyDictionary[Any, Tuple[str, str]] = WeakKeyDictionary()  # level and reason
# Why a backbone cannot be packed, empty if it can: what its first packed forward has shown.
_learnt: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
_warm: WeakSet[Any] = WeakSet()  # backbones that have had their longest row


@hookimpl(specname="last_hidden_states")
def off(backbone: Any, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
    """Hidden states (B, S, H) from one forward over every column, pads included."""
    inputs = frame_inputs(backbone, attention_mask, position_ids)
    hidden: Tensor = backbone(input_ids, **inputs)["last_hidden_state"]
    if not tensors.is_compiling():
        from coati_ext.rollout.host import array_of
        from coati_ext.rollout.packing.forward import tell_computed

        tell_computed(backbone, attention_mask.numel(), array_of(attention_mask))
    return hidden


@hookimpl(specname="last_hidden_states")
def groups(
    backbone: Any, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor
) -> Tensor:
    """Hidden states (B, S, H) from up to four forwards of rows of like length."""
    return _computed(_groups, backbone, input_ids, attention_mask, position_ids)


@hookimpl(specname="last_hidden_states")
def packed(
    backbone: Any, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor
) -> Tensor:
    """Hidden states (B, S, H) from one forward over the real tokens."""
    return _computed(_packed, backbone, input_ids, attention_mask, position_ids)


@hookimpl(specname="last_hidden_states")
def prefix(
    backbone: Any, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor
) -> Tensor:
    """Hidden states (B, S, H) from one forward over real tokens, those that rows share once."""
    return _computed(_prefix, backbone, input_ids, attention_mask, position_ids)


@hookimpl(specname="last_hidden_states")
def auto(backbone: Any, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
    """Hidden states (B, S, H) by the highest level that the backbone allows."""
    return _computed(_auto, backbone, input_ids, attention_mask, position_ids)


def _computed(
    level: Callable[[Any, Tensor, Tensor, Tensor], Tensor],
    backbone: Any,
    input_ids: Tensor,
    mask: Tensor,
    position_ids: Tensor,
) -> Tensor:
    """By a level, and with one more row where the allocator is warmed up.

    While torch.compile is tracing no length is known, and every column is computed.
    """
    if tensors.is_compiling():
        return off(backbone, input_ids, mask, position_ids)
    tokens = _warm_up(backbone)
    if not tokens:
        return level(backbone, input_ids, mask, position_ids)
    from torch.nn.functional import pad

    rows, columns = mask.shape
    more = (max(tokens - columns, 0), 0, 0, 1)  # columns at the left, a row at the end
    input_ids, mask = pad(input_ids, more), pad(mask, more)
    mask[rows, -tokens:] = True
    hidden = level(backbone, input_ids, mask, tensors.position_ids(mask))
    return hidden[:rows, -columns:]


def _warm_up(backbone: Any) -> int:
    """How many tokens the additional row has; none but in the first forward that keeps a graph.

    Raises:
        ValueError: the backbone has fewer positions.
    """
    import torch

    if backbone in _warm or not backbone.training or not torch.is_grad_enabled():
        return 0
    tokens: int = options("token_saving").warm_up
    positions = getattr(backbone.config, "max_position_embeddings", None)
    if positions and tokens > positions:
        raise ValueError(
            f"token_saving.warm_up is {tokens}, but {type(backbone).__name__} has {positions} "
            f"positions: expected a row of at most {positions} tokens"
        )
    _warm.add(backbone)
    return tokens


def _groups(backbone: Any, input_ids: Tensor, mask: Tensor, position_ids: Tensor) -> Tensor:
    from coati_ext.rollout.packing.forward import grouped_states

    return grouped_states(backbone, input_ids, mask)


def _packed(
    backbone: Any, input_ids: Tensor, mask: Tensor, position_ids: Tensor, share: bool = False
) -> Tensor:
    from coati_ext.rollout.packing.attending import NotPackable

    reason = _learnt.get(backbone) or _obstacle(backbone)
    if reason:
        raise NotPackable(reason)
    return _tried(backbone, input_ids, mask, position_ids, share)


def _prefix(backbone: Any, input_ids: Tensor, mask: Tensor, position_ids: Tensor) -> Tensor:
    return _packed(backbone, input_ids, mask, position_ids, share=True)


def _tried(
    backbone: Any, input_ids: Tensor, mask: Tensor, position_ids: Tensor, share: bool
) -> Tensor:
    """From one forward over real tokens; the first one shows whether the backbone can be packed.

    That one packs even rows without pads, so that all ranks learn the same by the same forward.

    Raises:
        NotPackable: it cannot.
    """
    from coati_ext.rollout.packing.attending import NotPackable
    from coati_ext.rollout.packing.forward import packed_states

    dense = backbone in _learnt
    try:
        found = packed_states(backbone, input_ids, mask, position_ids, share, dense)
    except NotPackable as error:
        _learnt.setdefault(backbone, error.reason)
        raise
    _learnt[backbone] = ""
    return found


def _auto(backbone: Any, input_ids: Tensor, mask: Tensor, position_ids: Tensor) -> Tensor:
    from coati_ext.rollout.packing.attending import NotPackable

    level, reason = highest(backbone)
    if level != "groups":
        try:
            found = _tried(backbone, input_ids, mask, position_ids, share=level == "prefix")
        except NotPackable as error:
            if not _learnt[backbone]:  # it could be packed before; other ranks go on without us
                raise
            level, reason = "groups", error.reason
    if level == "groups":
        found = _groups(backbone, input_ids, mask, position_ids)
    _tell(backbone, level, reason)
    return found


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
    window = getattr(config, "sliding_window", None) or getattr(
        config, "attention_chunk_size", None
    )
    if window and getattr(config, "use_sliding_window", True):
        return f"its attention sees {window} tokens"
    scaling: Dict[str, Any] = getattr(config, "rope_scaling", None) or {}
    kind = scaling.get("rope_type", scaling.get("type", ""))
    if kind in ("dynamic", "longrope"):
        return "its rotary positions depend on the length of the batch"
    return ""
