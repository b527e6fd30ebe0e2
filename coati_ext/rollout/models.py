"""What a torch module takes and computes in, seen through the wrappers that training puts on it."""

from __future__ import annotations

from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any, Callable, Dict, FrozenSet, Iterator, Optional, Tuple

from coati_ext import tensors

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

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
    _, *inside = layers_of(module)
    return bool(inside) and accepts(inside[0], argument)


def frame_inputs(
    model: nn.Module, mask: Tensor, position_ids: Optional[Tensor] = None
) -> Dict[str, Tensor]:
    """What a model is called with beside its ids: the mask, and positions where it takes them.

    Args:
        model: a backbone, an actor, or a wrapper of either.
        mask: (B, S) bool, true for real tokens.
        position_ids: (B, S), computed from the mask if not given.
    """
    inputs = {"attention_mask": mask.long()}
    if accepts(model, "position_ids"):
        inputs["position_ids"] = (
            tensors.position_ids(mask) if position_ids is None else position_ids
        )
    return inputs


def head_dtype(head: nn.Module, default: torch.dtype) -> torch.dtype:
    """The dtype that a value head computes in, or the default where it has no parameters."""
    floating = (item.dtype for item in head.parameters() if item.is_floating_point())
    return next(floating, default)


def layers_of(module: Any) -> Iterator[Any]:
    """A module and, one inside the other, the modules that it wraps."""
    while module is not None:
        yield module
        # Not getattr: the base_model of a transformers model is itself. Nor named_children, which
        # under Gemini are those of the wrapped model.
        children = getattr(module, "_modules", {})
        module = next((children[name] for name in _INNER if name in children), None)


def without_dropout(model: nn.Module) -> None:
    """Set every dropout probability of a model to zero, functional dropout included.

    PPO compares the probabilities of two forwards, so both must be of one network. OPT, BLOOM and
    the attention of most families keep a float named after dropout and never make an
    ``nn.Dropout``; Hugging Face's configuration, and so a saved model, keeps its values.
    """
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, float) and ("drop" in name or _is_dropout(module, name)):
                setattr(module, name, 0.0)


def _is_dropout(module: nn.Module, name: str) -> bool:
    return name == "p" and "Dropout" in type(module).__name__


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
