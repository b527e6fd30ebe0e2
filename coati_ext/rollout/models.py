"""Inspect torch modules inside training wrappers: forward arguments, head dtype, dropout."""

from __future__ import annotations

from contextlib import contextmanager
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any, Callable, Dict, FrozenSet, Iterator, List, Optional, Tuple

from coati_ext import tensors
from coati_ext.active import choice

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_Names = Tuple[FrozenSet[str], bool]
# Argument names by forward. A dict, because torch.compile warns about functools.lru_cache.
_seen: Dict[Callable[..., Any], _Names] = {}
# DDP and colossalai's wrappers, torch.compile, peft's outer and inner model.
_INNER = ("module", "_orig_mod", "base_model", "model")


def accepts(module: nn.Module, argument: str) -> bool:
    """Whether a module's forward takes an argument by name.

    If a wrapper's forward takes ``**kwargs``, the wrapped module decides. In an unwrapped module
    only named arguments count: BLOOM's ``**kwargs`` ignores position ids with a warning.
    """
    names, open_ended = _parameters(module)
    if argument in names or not open_ended:
        return argument in names
    _, *inside = layers_of(module)
    return bool(inside) and accepts(inside[0], argument)


def frame_inputs(
    model: nn.Module, mask: Optional[Tensor], position_ids: Optional[Tensor] = None
) -> Dict[str, Any]:
    """The keyword arguments of a forward besides the ids: mask and, if accepted, position ids.

    Without a cache of keys and values, which nothing here would read.

    Args:
        model: a backbone, an actor, or a wrapper of either.
        mask: (B, S) bool, true for real tokens; ``None`` passes none.
        position_ids: (B, S), computed from the mask if not given.
    """
    inputs: Dict[str, Any] = {} if mask is None else {"attention_mask": mask.long()}
    if accepts(model, "position_ids"):
        if position_ids is None and mask is not None:
            position_ids = tensors.position_ids(mask)
        inputs["position_ids"] = position_ids
    if accepts(model, "use_cache"):
        inputs["use_cache"] = False
    return inputs


def last_hidden_states(backbone: nn.Module, input_ids: Tensor, mask: Tensor) -> Tensor:
    """The last hidden states of a backbone, (B, S, H), by the hook ``last_hidden_states``.

    Args:
        backbone: a transformers model without a head.
        input_ids: (B, S) integer.
        mask: (B, S) bool, true for real tokens, between which no pad stands.
    """
    hidden: Tensor = choice("last_hidden_states")(
        backbone, input_ids, mask, tensors.position_ids(mask)
    )
    return hidden


def head_dtype(head: nn.Module, default: torch.dtype) -> torch.dtype:
    """The dtype of a value head's first floating-point parameter, or the default if it has none."""
    floating = (item.dtype for item in head.parameters() if item.is_floating_point())
    return next(floating, default)


def layers_of(module: Any) -> Iterator[Any]:
    """Yield a module and the modules that it wraps, from the outside in."""
    while module is not None:
        yield module
        # Not getattr: a transformers model may be its own base_model. Not named_children: under
        # Gemini these are the children of the wrapped model.
        children = getattr(module, "_modules", {})
        module = next((children[name] for name in _INNER if name in children), None)


@contextmanager
def attributes(item: Any, **given: Any) -> Iterator[None]:
    """Set attributes of an object itself, not through its class, for the length of a block."""
    own = vars(item)
    held = {name: own[name] for name in given if name in own}
    own.update(given)
    try:
        yield
    finally:
        for name in given:
            del own[name]
        own.update(held)


def without_dropout(model: nn.Module) -> None:
    """Set every dropout probability of a model to zero, functional dropout included.

    PPO compares the probabilities of two forwards, so both must use the same network. OPT, BLOOM
    and the attention of most families use functional dropout with a float attribute, not
    ``nn.Dropout``. The Hugging Face configuration, and so a saved model, keeps its dropout values.
    """
    for module, name in _dropouts(model):
        setattr(module, name, 0.0)


def drops_out(model: nn.Module) -> bool:
    """Whether a model in training drops anything."""
    return any(getattr(module, name) > 0 for module, name in _dropouts(model))


def _dropouts(model: nn.Module) -> List[Tuple[nn.Module, str]]:
    """The dropout probabilities of a model, as modules and names of their attributes."""
    return [
        (module, name)
        for module in model.modules()
        for name, value in vars(module).items()
        if isinstance(value, float) and ("drop" in name or _is_dropout(module, name))
    ]


def _is_dropout(module: nn.Module, name: str) -> bool:
    return name == "p" and "Dropout" in type(module).__name__


def _parameters(module: nn.Module) -> _Names:
    # accelerate and shardformer set forward on the instance.
    if "forward" in vars(module):
        return _names(module.forward)
    forward = type(module).forward
    if forward not in _seen:
        _seen[forward] = _names(forward)
    return _seen[forward]


def _names(forward: Callable[..., Any]) -> _Names:
    parameters = signature(forward).parameters
    return frozenset(parameters), any(p.kind is Parameter.VAR_KEYWORD for p in parameters.values())
