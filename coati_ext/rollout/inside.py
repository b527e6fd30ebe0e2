"""Reach a causal language model inside what wraps it, within the wrapper's own forward.

DDP reduces gradients, and ZeRO and Gemini gather parameters, for one call of their own forward. A
loss that called the wrapped model past its wrapper would leave every rank with gradients of its
own, without a word. So the wrapper is called, and for that call the inner model's forward is ours.

Letters: B rows, A action columns, S sequence columns, T tokens, H hidden.
"""

from __future__ import annotations

from typing import Any, Callable, Optional

import torch
import transformers
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from coati_ext import tensors
from coati_ext.active import choice
from coati_ext.rollout.frame import Frame
from coati_ext.rollout.host import array_of
from coati_ext.rollout.models import layers_of

# Configurations under which a model changes its logits after the head: Gemma 2, Cohere, Granite.
_AFTER_THE_HEAD = ("final_logit_softcapping", "logit_scale", "logits_scaling")
_TOKENS = 128


def through(wrapper: Any, inner: Any, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a wrapper once, with the forward of a model inside replaced for this call.

    Args:
        wrapper: what is called with the remaining arguments.
        inner: the wrapped model; may be the wrapper itself.
        forward: called instead of the model's forward; a tensor that it returns is what the wrapper
            returns, so that autograd and DDP see it.
        args: of the wrapper.
        kwargs: of the wrapper.
    """
    held = vars(inner).get("forward")
    vars(inner)["forward"] = forward
    try:
        return wrapper(*args, **kwargs)
    finally:
        if held is None:
            del vars(inner)["forward"]
        else:
            vars(inner)["forward"] = held


def causal_model(model: Any) -> Optional[Any]:
    """The transformers model inside an actor whose logits are its head's output, if there is one."""
    for layer in layers_of(model):
        if isinstance(layer, transformers.PreTrainedModel):
            plain = not any(getattr(layer.config, name, None) for name in _AFTER_THE_HEAD)
            # Tensor parallelism sets a forward of its own, which cuts the vocabulary.
            if plain and "forward" not in vars(layer) and layer.get_output_embeddings() is not None:
                return layer
            return None
    return None


def log_probs_of_frame(model: Any, frame: Frame) -> Tensor:
    """The log-probability of each action of a frame, (B, A) float32, zero where there is none.

    Only hidden states before an action go through the head, a part of the vocabulary at a time.

    Args:
        model: a causal language model, called within its own forward.
        frame: of B rows.
    """
    backbone = getattr(model, model.base_model_prefix)
    hidden = choice("last_hidden_states")(
        backbone, frame.sequences, frame.attention_mask, frame.position_ids
    )
    actions = array_of(frame.action_mask)
    row, column = actions.nonzero()
    rows, columns = frame.sequences.shape
    before = row * columns + (columns - frame.num_actions - 1) + column
    where, before = (
        torch.from_numpy(item).to(hidden.device)
        for item in (row * frame.num_actions + column, before)
    )
    found = log_probs_of(
        model.get_output_embeddings(),
        hidden.reshape(-1, hidden.size(-1)).index_select(0, before),
        frame.sequences.reshape(-1).index_select(0, before + 1),
    )
    everywhere = found.new_zeros(rows * frame.num_actions).index_copy(0, where, found)
    return everywhere.view(rows, frame.num_actions)


def log_probs_of(head: nn.Module, hidden: Tensor, ids: Tensor) -> Tensor:
    """The log-probability of each token under an output embedding: (T,), float32 or wider.

    Args:
        head: gives logits (T, V).
        hidden: (T, H) floating point.
        ids: (T,) integer.
    """
    if _is_plain(head):
        return tensors.head_log_probs(hidden, head.weight, head.bias, ids)
    # LoRA, a head cut over ranks, parameters that are gathered when their module is called: chunks
    # of tokens go through the module itself, and once more in the backward.
    parts = [
        _by_module(head, part, chosen)
        for part, chosen in zip(hidden.split(_TOKENS), ids.split(_TOKENS))
    ]
    return torch.cat(parts)


def _by_module(head: nn.Module, hidden: Tensor, ids: Tensor) -> Tensor:
    def log_probs(hidden: Tensor) -> Tensor:
        return tensors.selected_log_probs(head(hidden), ids)

    if not torch.is_grad_enabled():
        return log_probs(hidden)
    found: Tensor = checkpoint(log_probs, hidden, use_reentrant=False)
    return found


def _is_plain(head: Any) -> bool:
    # A head without parameters of its own class, and without hooks, is nothing but F.linear.
    return (
        type(head) is nn.Linear
        and "forward" not in vars(head)
        and type(head.weight) in (Tensor, nn.Parameter)
        and not (head._forward_hooks or head._forward_pre_hooks)
    )
