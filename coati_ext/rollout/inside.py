"""What is computed inside a wrapped model: DDP, ZeRO and Gemini see one forward of theirs.

A call of the inner model itself would pass their gradient reduction by: with DDP each rank would
keep gradients of its own, without an error.

Letters: B rows, A action columns, S sequence columns, H hidden size.
"""

from __future__ import annotations

from typing import Any, Callable, Optional

import torch
from torch import Tensor
from transformers import PreTrainedModel

from coati_ext.active import choice
from coati_ext.rollout import host
from coati_ext.rollout.frame import Frame
from coati_ext.rollout.log_probs import log_probs_of
from coati_ext.rollout.models import attributes, layers_of

# Of configurations: Gemma 2, RecurrentGemma, Cohere, Granite and Falcon H1 change logits after the
# head.
_AFTER_THE_HEAD = (
    "final_logit_softcapping",
    "logits_soft_cap",
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
)


def through(wrapper: Any, inner: Any, function: Callable[[], Any], *arguments: Any) -> Any:
    """Call ``wrapper(*arguments)``, in which ``inner`` returns ``function()`` for this once.

    Args:
        wrapper: a model with any wrappers around it.
        inner: one of :func:`layers_of` of it.
        function: what to compute instead of the forward of ``inner``.
        arguments: for the forwards from ``wrapper`` to ``inner``.
    """

    def redirected(*_: Any, **__: Any) -> Any:
        return function()

    with attributes(inner, forward=redirected):
        return wrapper(*arguments)


def language_model(model: Any) -> Optional[PreTrainedModel]:
    """The transformers model inside whose logits are its head on its backbone's hidden states.

    None where something else is done to them, or where that is not known.
    """
    for layer in layers_of(model):
        prompts = getattr(getattr(layer, "active_peft_config", None), "is_prompt_learning", False)
        if prompts or "_orig_mod" in getattr(layer, "_modules", {}):  # compiled as it was
            return None
        if isinstance(layer, PreTrainedModel):
            return layer if _is_backbone_and_head(layer) else None
    return None


def action_log_probs(model: PreTrainedModel, frame: Frame) -> Tensor:
    """Log-probabilities (B, A) of a :func:`language_model`, zero where there is no action."""
    hidden = choice("last_hidden_states")(
        model.base_model, frame.sequences, frame.attention_mask, frame.position_ids
    )
    rows, columns = host.array_of(frame.action_mask).nonzero()
    width, actions = frame.sequences.size(1), frame.num_actions

    def places(row_width: int, first: int) -> Tensor:
        found = torch.from_numpy(rows * row_width + first + columns)
        return found.to(hidden.device, non_blocking=True)

    before = places(width, width - actions - 1)  # the state in which an action is chosen
    found = log_probs_of(
        model.get_output_embeddings(),
        hidden.flatten(0, 1).index_select(0, before),
        frame.sequences.flatten().index_select(0, before + 1),
    )
    none = found.new_zeros(frame.action_mask.numel())
    return none.index_copy(0, places(actions, 0), found).view_as(frame.action_mask)


def _is_backbone_and_head(model: PreTrainedModel) -> bool:
    head = model.get_output_embeddings()
    parts = [model.base_model, head]
    return (
        type(model).__module__.startswith("transformers.")
        and head is not None
        and not model.config.is_encoder_decoder
        and {*map(id, parts)} == {*map(id, model.children())}
        and not any(getattr(model.config, name, None) for name in _AFTER_THE_HEAD)
    )
