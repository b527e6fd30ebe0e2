"""Let a backbone's attention be that of packed runs, for one forward and its recomputation.

Nothing is replaced for good. What is caught depends on how a family attends: a call of PyTorch's
``scaled_dot_product_attention``, whoever makes it, or the attention of a family that computes its
own (transformers 4.31 and 4.36). The caller must compare how often attention was asked for with the
number of layers: where a backbone attends in another way, its result is wrong.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Callable, Dict, Iterator, List, Tuple
from weakref import WeakKeyDictionary

import torch
import torch.utils.checkpoint
import transformers
from torch import Tensor
from torch.overrides import TorchFunctionMode

from coati_ext.errors import CoatiExtError
from coati_ext.rollout.models import attributes
from coati_ext.rollout.packing.segments import SDPA, Segments

# Newer transformers (4.51, not 4.36) look attention up by the name in a model's configuration.
_BY_NAME = hasattr(transformers.modeling_utils, "ALL_ATTENTION_FUNCTIONS")
_modules: WeakKeyDictionary[Any, List[Any]] = WeakKeyDictionary()


class NotPackable(CoatiExtError, RuntimeError):
    """A backbone attends in a way that is not known here."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"token_saving.level = packed and prefix cannot be had for this backbone: {reason}; "
            "groups can"
        )
        self.reason = reason


@contextmanager
def attending(backbone: Any, segments: Segments) -> Iterator[None]:
    """Within this block the backbone's attention is that of the runs."""
    if segments.attended:  # a checkpoint's first run lies within the forward
        yield
        return
    with ExitStack() as stack:
        segments.attended = True
        stack.callback(setattr, segments, "attended", False)
        for module in _own_attention(backbone):
            _, replaced = _OWN[type(module).__name__]
            stack.enter_context(attributes(module, **replaced(module, segments)))
        again = partial(_again, backbone, segments)
        for module in _checkpointing(backbone):
            checkpoint = vars(module).get("_gradient_checkpointing_func")
            if checkpoint is not None:
                own = {"_gradient_checkpointing_func": partial(again, checkpoint)}
                stack.enter_context(attributes(module, **own))
            else:  # as in transformers 4.31 a model calls PyTorch's by its full name
                library = torch.utils.checkpoint
                ours = partial(again, library.checkpoint)
                stack.enter_context(attributes(library, checkpoint=ours))
        if _BY_NAME:
            stack.enter_context(_sdpa_by_name(backbone.config))
        if SDPA is not None:
            stack.enter_context(_Caught(segments))
        yield


class _Caught(TorchFunctionMode):
    """Answers ``scaled_dot_product_attention`` for packed runs."""

    def __init__(self, segments: Segments) -> None:
        super().__init__()
        self.segments = segments

    def __torch_function__(
        self, func: Any, types: Any, args: Tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not SDPA:
            return func(*args, **kwargs)
        return _attend(self.segments, *args, **kwargs)


def _attend(
    segments: Segments,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **more: Any,
) -> Tensor:
    if attn_mask is not None or query.size(0) != 1 or query.size(2) != sum(segments.lengths):
        raise NotPackable("its attention takes a mask of its own")
    if not is_causal and query.size(2) > 1:
        raise NotPackable("its attention is not causal")
    return segments.attend(query, key, value, dropout_p, **more)


def _again(
    backbone: Any, segments: Segments, checkpoint: Any, run: Any, *args: Any, **kw: Any
) -> Any:
    """A checkpoint whose recomputation, in the backward pass, attends as the forward did."""

    def attended(*given: Any, **named: Any) -> Any:
        with attending(backbone, segments):
            return run(*given, **named)

    return checkpoint(attended, *args, **kw)


@contextmanager
def _sdpa_by_name(config: Any) -> Iterator[None]:
    before = config._attn_implementation
    if before == "sdpa":
        yield
        return
    config._attn_implementation = "sdpa"
    try:
        yield
    finally:
        config._attn_implementation = before


def _own_attention(backbone: Any) -> List[Any]:
    """The modules of a backbone that have to be told: found once."""
    found = _modules.get(backbone)
    if found is None:
        found = [item for item in backbone.modules() if _is_own(item)]
        _modules[backbone] = found
    return found


def _is_own(module: Any) -> bool:
    marks, _ = _OWN.get(type(module).__name__, ((), None))
    return any(hasattr(module, mark) for mark in marks)


def _checkpointing(backbone: Any) -> List[Any]:
    if not backbone.training or not torch.is_grad_enabled():
        return []
    return [item for item in backbone.modules() if getattr(item, "gradient_checkpointing", False)]


# --- families whose attention is their own, in transformers 4.31 and 4.36 ------------------------


def _gpt2(module: Any, segments: Segments) -> Dict[str, Any]:
    def attend(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> Any:
        scale = query.size(-1) ** -0.5 if module.scale_attn_weights else 1.0
        if module.scale_attn_by_inverse_layer_idx:
            scale /= module.layer_idx + 1
        dropout = module.attn_dropout.p if module.training else 0.0
        return segments.attend(query, key, value, dropout, scale=scale), None

    return {"_attn": attend}


def _gpt_neox(module: Any, segments: Segments) -> Dict[str, Any]:
    def attend(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> Any:
        query, key = query.to(value.dtype), key.to(value.dtype)
        factor = module.norm_factor  # in 4.31 a tensor of the CPU to divide by, rounded to float32
        scale = float(1.0 / factor) if isinstance(factor, Tensor) else factor
        return segments.attend(query, key, value, scale=scale), None

    return {"_attn": attend}


def _llama(module: Any, segments: Segments) -> Dict[str, Any]:
    family = sys.modules[type(module).__module__]

    def forward(
        hidden_states: Tensor,
        attention_mask: Any = None,
        position_ids: Any = None,
        *_: Any,
        **__: Any,
    ) -> Any:
        rows, columns, _width = hidden_states.shape
        query, key, value = (
            project(hidden_states).view(rows, columns, -1, module.head_dim).transpose(1, 2)
            for project in (module.q_proj, module.k_proj, module.v_proj)
        )
        rotation = module.rotary_emb(value, seq_len=segments.longest)
        query, key = family.apply_rotary_pos_emb(query, key, *rotation, position_ids)
        groups = module.num_key_value_groups
        key, value = (family.repeat_kv(item, groups) for item in (key, value))
        found = segments.attend(query, key, value)
        return module.o_proj(found.transpose(1, 2).reshape(rows, columns, -1)), None, None

    return {"forward": forward}


def _llama_model(module: Any, segments: Segments) -> Dict[str, Any]:
    """No (T, T) mask, which nothing would read: 4.36 makes none for flash attention."""
    none = {"_prepare_decoder_attention_mask": lambda *_, **__: None}
    return {**none, "_use_flash_attention_2": True}


# By class: the attributes that tell these versions from later ones, and what is replaced.
_OWN: Dict[str, Tuple[Tuple[str, ...], Callable[[Any, Segments], Dict[str, Any]]]] = {
    "GPT2Attention": (("_attn",), _gpt2),
    "GPTNeoXAttention": (("_attn",), _gpt_neox),
    "LlamaAttention": (("_init_rope",), _llama),
    "LlamaModel": (("_prepare_decoder_attention_mask", "_use_flash_attention_2"), _llama_model),
}
