"""Sample with ``generate`` of transformers, and give the token ids that upstream's sampler gives.

``generate`` computes no logits of the prompt where a model can leave them out, and prepares its
cache once. All that decides which token comes is upstream's: its logits processors, in the dtype
that the actor's logits have, its test of whether all ranks have finished, and the wrapper's own
forward at each step, in which Gemini gathers parameters. The
model's own ``generation_config`` is not read, as upstream does not read it. Finished rows stay in
the batch: each draw takes its random numbers for all rows, so without them others would be drawn.
Letters: B rows, P prompt columns, S sequence columns, V vocabulary.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from inspect import signature
from typing import TYPE_CHECKING, Any, Callable, Iterator, List, Mapping, Optional

from coati_ext import hookimpl
from coati_ext.rollout.models import attributes, layers_of

from .sampler import end_tokens, stop_sequences, upstream

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_KNOWN = {
    "attention_mask",
    "cache_position",
    "do_sample",
    "early_stopping",
    "eos_token_id",
    "max_length",
    "max_new_tokens",
    "num_beams",
    "pad_token_id",
    "prepare_inputs_fn",
    "stop_token_ids",
    "temperature",
    "top_k",
    "top_p",
    "update_model_kwargs_fn",
    "use_cache",
}


@hookimpl(specname="sample_answers")
def hf(
    maker: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    new_tokens: int,
    generate_kwargs: Mapping[str, Any],
) -> Tensor:
    """Sample with ``generate`` of transformers: prompts with answers (B, S), int64.

    Where it could not give upstream's token ids, upstream's sampler gives them.
    """
    model = _generating(maker, generate_kwargs)
    if model is None:
        return upstream(maker, input_ids, attention_mask, new_tokens, generate_kwargs)
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    use_cache = generate_kwargs.get("use_cache")
    config = GenerationConfig(
        do_sample=True,
        max_new_tokens=new_tokens,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        use_cache=getattr(model.config, "use_cache", True) if use_cache is None else use_cache,
    )
    steps = _Steps(maker, input_ids, generate_kwargs)
    with attributes(model, generation_config=config), _asked_through(
        maker.actor, model, steps.note
    ):
        sequences: Tensor = model.generate(
            input_ids,
            attention_mask=attention_mask.long(),
            logits_processor=LogitsProcessorList([steps.process]),
            stopping_criteria=StoppingCriteriaList([steps.stop]),
        )
    return sequences


def _generating(maker: Any, given: Mapping[str, Any]) -> Optional[Any]:
    """The transformers model inside the actor, or ``None`` where only upstream's sampler will do.

    That is before v0.3.2, where another sampler was put into upstream's place, for arguments that
    only upstream's knows or refuses, for a preparation of inputs that is not the model's own, and
    for forwards put into the model's modules, such as those of tensor parallelism, which keep no
    cache, though ``generate`` counts on the one that it made.
    """
    from transformers import PreTrainedModel

    naive = import_module("coati.experience_maker.naive")
    sampler = import_module("coati.models.generation").generate
    layers = layers_of(maker.actor)
    model = next((layer for layer in layers if isinstance(layer, PreTrainedModel)), None)
    functions = (given.get("prepare_inputs_fn"), given.get("update_model_kwargs_fn"))
    plain = (
        getattr(naive, "generate", None) is sampler
        and sampler.__module__ == "coati.models.generation"
        and set(given) <= _KNOWN
        and given.get("do_sample", True) is True
        and given.get("num_beams", 1) == 1
        and all(item is None or getattr(item, "__self__", None) is model for item in functions)
    )
    if not plain or model is None or not model.can_generate():
        return None
    if any("forward" in vars(module) for module in model.modules()):
        return None
    eos, pad = _eos_and_pad(maker, given)
    return model if eos is None or pad is not None else None


def _eos_and_pad(maker: Any, given: Mapping[str, Any]) -> Any:
    if hasattr(maker, "tokenizer"):
        return maker.tokenizer.eos_token_id, maker.tokenizer.pad_token_id
    return given.get("eos_token_id"), given.get("pad_token_id")  # G1


class _Steps:
    """What upstream's sampler does after each forward, as a logits processor and a criterion."""

    def __init__(self, maker: Any, input_ids: Tensor, given: Mapping[str, Any]) -> None:
        import torch

        generation = import_module("coati.models.generation")
        eos, self._pad = _eos_and_pad(maker, given)
        ends = end_tokens(eos)
        if "stop_token_ids" in signature(generation._sample).parameters:  # G3, G4
            ends = [*stop_sequences(given.get("stop_token_ids")), *ends]
        self._fills = eos is not None
        self._ends: List[Tensor] = [torch.tensor(end, device=input_ids.device) for end in ends]
        self._finished = torch.zeros_like(input_ids[:, 0], dtype=torch.bool)
        self._all_finished = generation._is_sequence_finished
        default = signature(generation.generate).parameters["early_stopping"].default
        self._early = given.get("early_stopping", default)
        names = ("top_k", "top_p", "temperature")
        self._processors = generation._prepare_logits_processor(*map(given.get, names))
        self._dtype: Optional[torch.dtype] = None

    def note(self, outputs: Any) -> None:
        """Remember the dtype of the actor's logits, which ``generate`` makes float32."""
        self._dtype = outputs["logits"].dtype

    def process(self, input_ids: Tensor, logits: Tensor) -> Tensor:
        """Scores (B, V), float32, by upstream's processors; of finished rows pads alone.

        ``generate`` could fill finished rows itself, but then a rank that has finished would leave
        the loop before the others.
        """
        scores: Tensor = self._processors(input_ids, logits.to(self._dtype)).float()
        if not self._fills:
            return scores
        only_pad = scores.new_full(scores.shape[1:], float("-inf"))
        only_pad[self._pad] = 0.0
        return only_pad.where(self._finished.unsqueeze(1), scores)

    def stop(self, input_ids: Tensor, scores: Any, **_: Any) -> Any:
        """Whether to end the loop, a bool or a tensor () of one: all rows of all ranks are done."""
        for end in self._ends:
            if len(end) <= input_ids.size(1):
                self._finished = self._finished | (input_ids[:, -len(end) :] == end).all(dim=1)
        return self._early and self._all_finished((~self._finished).long())


@contextmanager
def _asked_through(actor: Any, model: Any, note: Callable[[Any], None]) -> Iterator[None]:
    """Let a call of the inner model be a call of the actor around it, which calls the model."""
    held = model.forward

    @wraps(held)
    def through(*args: Any, **kwargs: Any) -> Any:
        with attributes(model, forward=held):
            outputs = held(*args, **kwargs) if actor is model else actor(*args, **kwargs)
        note(outputs)
        return outputs

    with attributes(model, forward=through):
        yield
