"""Call upstream's sampler with an attention mask and stop sequences, in every generation."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, Mapping, Sequence

from coati_ext import hookimpl, tensors
from coati_ext.rollout.models import layers_of

if TYPE_CHECKING:
    from torch import Tensor


@hookimpl(specname="sample_answers")
def upstream(
    maker: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    new_tokens: int,
    generate_kwargs: Mapping[str, Any],
) -> Tensor:
    """Sample with upstream's ``generate`` and an attention mask: prompts with answers (B, S)."""
    names = ("attention_mask", "max_length", "max_new_tokens", "stop_token_ids")
    given = {key: value for key, value in generate_kwargs.items() if key not in names}
    given["max_length"] = input_ids.size(1) + new_tokens
    given["attention_mask"] = attention_mask.long()
    _add_generation_functions(maker.actor, input_ids, given)
    naive = import_module("coati.experience_maker.naive")
    sequences: Tensor
    if hasattr(naive, "generate_with_actor"):  # v0.3.1
        given["return_action_mask"] = False
        sequences, *_ = naive.generate_with_actor(maker.actor, input_ids, **given)
        return sequences
    if not hasattr(naive, "generate"):  # before v0.3.1
        sequences, *_ = maker.actor.generate(input_ids, return_action_mask=False, **given)
        return sequences
    if not hasattr(maker, "tokenizer"):  # G1
        sequences = naive.generate(maker.actor, input_ids, **given)
        return sequences
    stops = stop_sequences(generate_kwargs.get("stop_token_ids"))
    with _padding_left(maker.tokenizer):
        if hasattr(maker, "use_grpo"):  # G4
            given["stop_token_ids"] = [list(stop) for stop in stops] or None
        else:  # G3
            return _ended_from_outside(naive.generate, maker, input_ids, given, stops)
        sequences = naive.generate(maker.actor, input_ids, maker.tokenizer, **given)
    return sequences


def stop_sequences(stop_token_ids: Any) -> List[List[int]]:
    """``stop_token_ids`` of any generation, as a list of stop sequences.

    Args:
        stop_token_ids: ``None``, one id, a list of ids (one sequence) or a list of either.

    Raises:
        ValueError: it has another type.
    """
    if stop_token_ids is None:
        return []
    if isinstance(stop_token_ids, int):
        return [[stop_token_ids]]
    if isinstance(stop_token_ids, (list, tuple)):
        if all(isinstance(item, int) for item in stop_token_ids):
            return [list(stop_token_ids)] if stop_token_ids else []
        nested = [[item] if isinstance(item, int) else item for item in stop_token_ids]
        if all(
            isinstance(item, (list, tuple)) and all(isinstance(token, int) for token in item)
            for item in nested
        ):
            return [list(item) for item in nested if item]
    raise ValueError(
        f"stop_token_ids = {stop_token_ids!r}: expected None, a token id, a list of ids that end "
        "an answer together, or a list of such lists, any of which ends it"
    )


def _add_generation_functions(actor: Any, input_ids: Tensor, given: Dict[str, Any]) -> None:
    """Add Hugging Face's input preparation to the arguments, as upstream's trainers do."""
    import torch

    for name, method in (
        ("prepare_inputs_fn", "prepare_inputs_for_generation"),
        ("update_model_kwargs_fn", "_update_model_kwargs_for_generation"),
    ):
        owner = next((layer for layer in layers_of(actor) if hasattr(layer, method)), None)
        if given.get(name) is None and owner is not None:
            given[name] = getattr(owner, method)
            if name == "update_model_kwargs_fn":
                given[name] = partial(_updated, given[name])
    # From transformers 4.42 on the two methods need this, which HF's generate would supply.
    if given.get("update_model_kwargs_fn") is not None and given.get("cache_position") is None:
        given["cache_position"] = torch.arange(input_ids.size(1), device=input_ids.device)


def _updated(update: Any, outputs: Any, model_kwargs: Any = None, **spread: Any) -> Any:
    # v0.2.8 passes model_kwargs as keyword arguments, later samplers as one argument.
    return update(outputs, spread if model_kwargs is None else model_kwargs)


class _Ended(Exception):
    def __init__(self, sequences: Tensor) -> None:
        super().__init__()
        self.sequences = sequences


def _ended_from_outside(
    generate: Callable[..., Tensor],
    maker: Any,
    input_ids: Tensor,
    given: Dict[str, Any],
    stops: Sequence[Sequence[int]],
) -> Tensor:
    """Sample in G3 without its own stopping, which overwrites the last tokens of cut-off rows.

    The sampler gets no stop sequences and a ``max_length`` one token too large. The function that
    prepares each step's inputs sees all rows; it stops the sampler by an exception when every
    answer has ended or ``max_length`` is reached.
    """
    from coati.models.generation import _is_sequence_finished

    width, full = input_ids.size(1), given["max_length"]
    ends = [*stops, *end_tokens(maker.tokenizer.eos_token_id)]
    prepare = given.get("prepare_inputs_fn")

    def prepare_or_leave(input_ids: Tensor, **model_kwargs: Any) -> Any:
        if input_ids.size(1) == full:
            raise _Ended(input_ids)
        if stops and given.get("early_stopping", True) and input_ids.size(1) > width:
            _, ended = tensors.answer_mask(input_ids, width, ends)
            if _is_sequence_finished((~ended).long()):
                raise _Ended(input_ids)
        if prepare is not None:
            return prepare(input_ids, **model_kwargs)
        return {"input_ids": input_ids, "attention_mask": model_kwargs["attention_mask"]}

    given = {**given, "max_length": full + 1, "prepare_inputs_fn": prepare_or_leave}
    try:
        return generate(maker.actor, input_ids, maker.tokenizer, **given)[:, :full]
    except _Ended as ended:
        return ended.sequences


@contextmanager
def _padding_left(tokenizer: Any) -> Iterator[None]:
    """Set the tokenizer's side to left, as upstream asserts; the prompts are left-padded."""
    side = getattr(tokenizer, "padding_side", "left")
    if side == "left":
        yield
        return
    tokenizer.padding_side = "left"
    try:
        yield
    finally:
        tokenizer.padding_side = side


def end_tokens(eos_token_id: Any) -> List[List[int]]:
    """The EOS token as a list of stop sequences, empty if there is none."""
    return [] if eos_token_id is None else [[int(eos_token_id)]]
