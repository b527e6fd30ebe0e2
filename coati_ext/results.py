"""What each choice hook must return, and the check of what a user's implementation returned.

Type, shape, kind of dtype, device and gradients are compared at each call. What needs the numbers
(NaN, gaps in a mask, prompts that changed) is looked at on the CPU through NumPy, which shares the
memory, and left to ``torch._assert_async`` on CUDA, so nothing waits for a device. Results with
gradients are not searched for NaN on CUDA: a ``GradScaler`` lets a forward pass overflow.

Letters: B rows, S sequence columns, P prompt columns, A action columns, H hidden.
"""

from __future__ import annotations

import math
from typing import Any, Callable, Dict, List, Sequence, Tuple

import torch
from torch import Tensor

from coati_ext.errors import PluginError
from coati_ext.tensors.frame import is_compiling

_FLOAT, _BOOL, _IDS = "floating point", "bool", "token ids"
_ASSERT_TAKES_WORDS = hasattr(torch.ops.aten._assert_async, "msg")  # since torch 2.1


def check(hook: str, told: str, found: Any, arguments: Sequence[Any]) -> None:
    """Check what an implementation of a choice hook returned.

    Args:
        hook: its name.
        told: the hook, its plugin, and the file and line of the implementation, for messages.
        found: what it returned.
        arguments: all arguments of the hook, in order.

    Raises:
        PluginError: it is not what the hook must return. On CUDA what needs the numbers ends in a
            device-side assertion instead.
    """
    _CONTRACTS[hook](told, found, *arguments)


def versions(arguments: Sequence[Any]) -> List[int]:
    """How often each tensor among the arguments of a choice has been changed in place."""
    if is_compiling():
        return []
    tensors = [item for item in arguments if isinstance(item, Tensor)]
    if not tensors and hasattr(arguments[1], "sequences"):  # a model and a frame
        tensors = list(vars(arguments[1]).values())
    return [item._version for item in tensors if not item.is_inference()]


def hidden_width(config: Any, unknown: Any = None) -> Any:
    """H of the last hidden states of a model of this configuration, which OPT may project.

    Args:
        config: of a transformers model.
        unknown: what is returned where it does not say.
    """
    return getattr(config, "word_embed_proj_dim", getattr(config, "hidden_size", unknown))


def _last_hidden_states(told: str, found: Any, backbone: Any, input_ids: Tensor, *_: Any) -> None:
    found_width = found.size(-1) if isinstance(found, Tensor) and found.dim() == 3 else "H"
    width = hidden_width(getattr(backbone, "config", None), found_width)
    _require_like(told, found, "(B, S, H)", (*input_ids.shape, width), _FLOAT, input_ids)
    _require_graph(told, found, backbone)
    _require_finite(told, found)


def _pool_reward(told: str, found: Any, hidden: Tensor, *_: Any) -> None:
    _require_like(told, found, "(B, H)", (hidden.size(0), hidden.size(2)), _FLOAT, hidden)
    _require_graph(told, found, hidden)
    _require_finite(told, found)


def _align_prompts(told: str, found: Any, input_ids: Tensor, attention_mask: Tensor) -> None:
    ids, mask = _pair(told, found)
    width = ids.size(1) if isinstance(ids, Tensor) and ids.dim() == 2 else -1
    shape = (input_ids.size(0), max(width, 1))
    _require_like(told, ids, "(B, P)", shape, _IDS, input_ids, "as the ids ")
    _require_like(told, mask, "(B, P)", shape, _BOOL, input_ids, "as the mask ")
    wanted = "left-padded rows, without gaps, of at least one real token"
    _require(told, "a mask that does not end with a real token", wanted, _last_column, mask)
    _require(told, "a mask with a gap", wanted, _never_falls, mask)


def _sample_answers(
    told: str, found: Any, maker: Any, input_ids: Tensor, mask: Tensor, new_tokens: int, *_: Any
) -> None:
    rows, width = input_ids.shape
    fits = isinstance(found, Tensor) and found.dim() == 2 and found.size(0) == rows
    fits = fits and width < found.size(1) <= width + new_tokens
    shape = found.shape if fits else (rows, f"{width + 1} to {width + new_tokens}")
    _require_like(told, found, "(B, S)", shape, _IDS, input_ids)
    changed = "the prompts changed"
    _require(told, changed, "the prompts as they came", _kept, found, input_ids, mask)


def _mark_actions(told: str, found: Any, sequences: Tensor, prompt_width: int, *_: Any) -> None:
    actions, ended = _pair(told, found)
    rows, columns = sequences.shape
    shape = (rows, columns - prompt_width)
    _require_like(told, actions, "(B, A)", shape, _BOOL, sequences, "as the action mask ")
    _require_like(told, ended, "(B,)", (rows,), _BOOL, sequences, "as what ended ")
    wanted = "the actions of a row first, without gaps"
    _require(told, "an action mask with a gap", wanted, _never_rises, actions)


def _of_actions(told: str, found: Any, model: Any, frame: Any) -> None:
    mask = frame.action_mask
    _require_like(told, found, "(B, A)", mask.shape, _FLOAT, mask)
    _require_graph(told, found, model)
    _require_finite(told, found, mask)


def _score_rows(told: str, found: Any, model: Any, frame: Any, extras: Any) -> None:
    sequences = frame.sequences
    _require_like(told, found, "(B,)", (sequences.size(0),), _FLOAT, sequences)
    _require_graph(told, found)
    _require_finite(told, found)


def _scale_reward(told: str, found: Any, reward: Tensor, *_: Any) -> None:
    _require_like(told, found, "(B,)", reward.shape, _FLOAT, reward)
    _require_graph(told, found, reward)
    _require_finite(told, found)


def _shape_reward(told: str, found: Any, score: Any, log_ratio: Any, mask: Tensor, *_: Any) -> None:
    _masked(told, found, mask)


def _estimate_advantages(
    told: str, found: Any, values: Any, rewards: Any, mask: Tensor, *_: Any
) -> None:
    _masked(told, found, mask)


def _masked(told: str, found: Any, mask: Tensor) -> None:
    _require_like(told, found, "(B, A)", mask.shape, _FLOAT, mask)
    _require_graph(told, found)
    wanted = "finite numbers, zero where there is no action"
    _require(told, "a number that is out of place", wanted, _finite_or_zero, found, mask)


def _compare_group(told: str, found: Any, score: Tensor, *_: Any) -> None:
    _require_like(told, found, "(B,)", score.shape, _FLOAT, score)
    _require_graph(told, found)
    _require_finite(told, found)


def _scale_advantages(told: str, found: Any, advantages: Tensor, mask: Tensor) -> None:
    _require_like(told, found, "(B, A)", mask.shape, _FLOAT, mask)
    _require_finite(told, found, mask)


def _group_advantages(told: str, found: Any, reward: Any, mask: Tensor, *_: Any) -> None:
    _masked(told, found, mask)


def _action_losses(
    told: str, found: Any, log_probs: Tensor, old: Any, reference: Any, advantages: Any, *more: Any
) -> None:
    mask = more[0]
    _require_like(told, found, "(B, A)", mask.shape, _FLOAT, mask)
    _require_graph(told, found, log_probs)
    _require_finite(told, found, mask)


_CONTRACTS: Dict[str, Callable[..., None]] = {
    "action_log_probs": _of_actions,
    "action_losses": _action_losses,
    "align_prompts": _align_prompts,
    "compare_group": _compare_group,
    "estimate_advantages": _estimate_advantages,
    "group_advantages": _group_advantages,
    "last_hidden_states": _last_hidden_states,
    "mark_actions": _mark_actions,
    "pool_reward": _pool_reward,
    "sample_answers": _sample_answers,
    "scale_advantages": _scale_advantages,
    "scale_reward": _scale_reward,
    "score_rows": _score_rows,
    "shape_reward": _shape_reward,
    "state_values": _of_actions,
}


# --- what it is ----------------------------------------------------------------------------------


def _require_like(
    told: str,
    found: Any,
    letters: str,
    shape: Sequence[object],
    kind: str,
    like: Tensor,
    part: str = "",
) -> None:
    if (
        isinstance(found, Tensor)
        and found.shape == shape
        and found.device == like.device
        and found.layout == torch.strided
        and _is_of(kind, found, like)
    ):
        return
    sizes = ", ".join(map(str, shape)) + "," * (len(shape) == 1)
    dtype = f" of {_name(like.dtype)}" if kind == _IDS else ""
    raise PluginError(
        f"{told} returned {part}{_described(found)}: expected {letters} = ({sizes}), "
        f"{kind}{dtype}, on {like.device}"
    )


def _is_of(kind: str, found: Tensor, like: Tensor) -> bool:
    if kind == _FLOAT:
        return found.is_floating_point()
    return found.dtype == (torch.bool if kind == _BOOL else like.dtype)


def _pair(told: str, found: Any) -> Tuple[Any, Any]:
    if isinstance(found, (tuple, list)) and len(found) == 2:
        return found[0], found[1]
    raise PluginError(f"{told} returned {_described(found)}: expected a tuple of two tensors")


def _described(found: Any) -> str:
    if isinstance(found, Tensor):
        layout = "" if found.layout == torch.strided else f"{_name(found.layout)} "
        shape = tuple(found.shape)
        return f"a {layout}tensor of shape {shape}, {_name(found.dtype)}, on {found.device}"
    if found is None:
        return "None"
    kind = type(found)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    if isinstance(found, (tuple, list)):
        return f"a {name} of {len(found)}"
    return f"a {name} of shape {found.shape}" if hasattr(found, "shape") else f"a {name}"


def _name(item: object) -> str:
    return str(item).replace("torch.", "")


def _require_graph(told: str, found: Tensor, trained: Any = None) -> None:
    """Gradients where a model, or the backbone of hidden states, is trained; none in a rollout."""
    if torch.is_grad_enabled():
        if not found.requires_grad and _is_trained(trained):
            raise PluginError(
                f"{told} returned a tensor without gradients, and the model is being trained: "
                "expected one that was computed from the model, without detach() or no_grad()"
            )
    elif found.requires_grad:
        raise PluginError(
            f"{told} returned a tensor that requires gradients where nothing is trained: expected "
            "one without, as by detach()"
        )


def _is_trained(model: Any) -> bool:
    if model is None or isinstance(model, Tensor):
        return model is not None and model.requires_grad
    return any(item.requires_grad for item in getattr(model, "parameters", tuple)())


# --- what is in it: written for tensors and arrays, true where an element is right ---------------


def _finite(numbers: Any) -> Any:
    return abs(numbers) < math.inf


def _finite_actions(numbers: Any, mask: Any) -> Any:
    return (abs(numbers) < math.inf) | ~mask


def _finite_or_zero(numbers: Any, mask: Any) -> Any:
    return ((abs(numbers) < math.inf) & mask) | (numbers == 0)


def _kept(sequences: Any, prompts: Any, mask: Any) -> Any:
    return (sequences[:, : prompts.shape[1]] == prompts) | ~mask


def _last_column(mask: Any) -> Any:
    return mask[:, -1:]


def _never_falls(mask: Any) -> Any:
    return mask[:, 1:] >= mask[:, :-1]


def _never_rises(mask: Any) -> Any:
    return mask[:, 1:] <= mask[:, :-1]


def _require_finite(told: str, found: Tensor, *mask: Tensor) -> None:
    if found.requires_grad and not found.is_cpu:
        return
    if found.is_cpu and not is_compiling():
        numbers = _array(found).ravel()
        if math.isfinite(numbers.dot(numbers)):  # three times as quick as a look at each
            return
    fine = _finite_actions if mask else _finite
    _require(told, "a number that is not finite", "finite numbers", fine, found, *mask)


def _require(
    told: str, what: str, wanted: str, fine: Callable[..., Any], found: Tensor, *others: Tensor
) -> None:
    if is_compiling():
        return
    if found.is_cpu:
        right = fine(*[_array(item) for item in (found, *others)])
        if not right.all():
            first = tuple(indices[0] for indices in (~right).nonzero())
            value = f" ({_array(found)[first]})" if found.is_floating_point() else ""
            raise PluginError(
                f"{told} returned {_described(found)} with {what}{value} in row {first[0]}: "
                f"expected {wanted}"
            )
    elif found.is_cuda:
        right = fine(found.detach(), *others).all()
        words = [f"{told} returned {what}: expected {wanted}"] if _ASSERT_TAKES_WORDS else []
        torch._assert_async(right, *words)


def _array(item: Tensor) -> Any:
    if item.requires_grad:
        item = item.detach()
    # NumPy has no bf16 and no float8, and is slow with fp16.
    narrow = item.is_floating_point() and item.element_size() < 4
    return (item.float() if narrow else item).numpy()
