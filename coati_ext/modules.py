"""What a torch module takes and computes in, seen through the wrappers that training puts on it."""

from __future__ import annotations

from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any, Callable, Dict, FrozenSet, Tuple

if TYPE_CHECKING:
    import torch
    from torch import nn

_Names = Tuple[FrozenSet[str], bool]
# What each class's forward takes. A dict, since torch.compile warns of functools.lru_cache.
_seen: Dict[Callable[..., Any], _Names] = {}
# DDP and colossalai's wrappers, torch.compile, peft's outer and inner model.
_INNER = ("module", "_orig_mod", "base_model", "model")


def accepts(module: nn.Module, argument: str) -> bool:
    """Whether a module's forward takes an argument by name.

    A wrapper whose forward takes ``**kwargs`` is asked what it wraps; one that wraps nothing is
    taken at its named word, since BLOOM's ``**kwargs`` warns about positions and ignores them.
    """
    names, open_ended = _parameters(module)
    if argument in names or not open_ended:
        return argument in names
    children = dict(module.named_children())  # not getattr: a transformers base_model is itself
    inner = next((children[name] for name in _INNER if name in children), None)
    return inner is not None and accepts(inner, argument)


def head_dtype(head: nn.Module, default: torch.dtype) -> torch.dtype:
    """The dtype that a value head computes in, or the default where it has no parameters."""
    floating = (item.dtype for item in head.parameters() if item.is_floating_point())
    return next(floating, default)


def _parameters(module: nn.Module) -> _Names:
    # accelerate and shardformer give single instances a forward of their own.
    if "forward" in vars(module):
        return _names(module.forward)
    forward = type(module).forward
    if forward not in _seen:
        _seen[forward] = _names(forward)
    return _seen[forward]


def _names(forward: Callable[..., Any]) -> _Names:
    parameters = signature(forward).parameters
    return frozenset(parameters), any(p.kind is Parameter.VAR_KEYWORD for p in parameters.values())
