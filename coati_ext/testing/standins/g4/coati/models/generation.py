"""Sampling, one token at a time; the tokenizer's padding side is checked, the prompts are not."""

from __future__ import annotations

from typing import Any, Callable, List, Optional

import torch
import torch.distributed as dist
from transformers import PreTrainedTokenizer
from transformers.generation import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


def _prepare_logits_processor(
    top_k: Optional[int] = None, top_p: Optional[float] = None, temperature: Optional[float] = None
) -> LogitsProcessorList:
    chain = LogitsProcessorList()
    if temperature not in (None, 1.0):
        chain.append(TemperatureLogitsWarper(temperature))
    if top_k not in (None, 0):
        chain.append(TopKLogitsWarper(top_k))
    if top_p is not None and top_p < 1.0:
        chain.append(TopPLogitsWarper(top_p))
    return chain


def _is_sequence_finished(unfinished_sequences: torch.Tensor) -> bool:
    if dist.is_initialized() and dist.get_world_size() > 1:
        unfinished_sequences = unfinished_sequences.clone()
        dist.all_reduce(unfinished_sequences)
    return unfinished_sequences.max() == 0


def update_model_kwargs_fn(outputs: dict, new_mask: torch.Tensor, **model_kwargs: Any) -> dict:
    model_kwargs["past_key_values"] = outputs.get("past_key_values")
    if "token_type_ids" in model_kwargs:
        types = model_kwargs["token_type_ids"]
        model_kwargs["token_type_ids"] = torch.cat([types, types[:, -1:]], dim=-1)
    if "attention_mask" in model_kwargs:
        mask = model_kwargs["attention_mask"]
        model_kwargs["attention_mask"] = torch.cat([mask, new_mask], dim=-1)
    return model_kwargs


def prepare_inputs_fn(input_ids: torch.Tensor, **model_kwargs: Any) -> dict:
    return {**model_kwargs, "input_ids": input_ids}


def _ends_with(input_ids: torch.Tensor, stop: List[int]) -> torch.Tensor:
    tail = input_ids[:, -len(stop) :]
    return (tail == torch.LongTensor(stop).to(input_ids.device)).all(dim=1)


def _sample(
    model: Any,
    tokenizer: Any,
    input_ids: torch.Tensor,
    max_length: int,
    early_stopping: bool = True,
    eos_token_id: Optional[int] = None,
    pad_token_id: Optional[int] = None,
    stop_token_ids: Optional[List[List[int]]] = None,
    top_k: Optional[int] = None,
    top_p: Optional[float] = None,
    temperature: Optional[float] = None,
    max_new_tokens: Optional[int] = None,
    prepare_inputs_fn: Optional[Callable[..., dict]] = None,
    update_model_kwargs_fn: Optional[Callable[..., dict]] = None,
    stream_interval: int = 2,
    **model_kwargs: Any,
) -> torch.Tensor:
    room = max_length - input_ids.size(1)
    steps = room if max_new_tokens is None else max_new_tokens
    if steps > room or steps == 0:
        print("the prompt leaves no room for an answer")
        return input_ids  # the prompt comes back without an answer (D20)
    warp = _prepare_logits_processor(top_k, top_p, temperature)
    going = torch.ones_like(input_ids[:, 0])
    past = None
    for _ in range(steps):
        model_kwargs.setdefault("attention_mask", input_ids.ne(pad_token_id))
        if prepare_inputs_fn is None:
            inputs = {"input_ids": input_ids, "attention_mask": input_ids.ne(pad_token_id)}
        else:
            inputs = prepare_inputs_fn(input_ids, past=past, **model_kwargs)
        outputs = model(**inputs)
        past = outputs.get("past_key_values", past)
        logits = warp(input_ids, outputs["logits"][:, -1])
        chances = torch.softmax(logits, dim=-1, dtype=torch.float)
        token = torch.multinomial(chances, num_samples=1).squeeze(1)
        if eos_token_id is not None:
            assert pad_token_id is not None, "`eos_token_id` needs a `pad_token_id`"
            token = token * going + pad_token_id * (1 - going)
        input_ids = torch.cat([input_ids, token.unsqueeze(1)], dim=1)
        if update_model_kwargs_fn is not None:
            model_kwargs = update_model_kwargs_fn(outputs, model_kwargs)
        if eos_token_id is not None:
            going = going * (token != eos_token_id)
        for stop in stop_token_ids or []:
            going = going * ~_ends_with(input_ids, stop)
        if early_stopping and _is_sequence_finished(going):
            break
    return input_ids


@torch.inference_mode()
def generate(
    model: Any,
    input_ids: torch.Tensor,
    tokenizer: PreTrainedTokenizer,
    max_length: int,
    num_beams: int = 1,
    do_sample: bool = True,
    early_stopping: bool = True,
    top_k: Optional[int] = None,
    top_p: Optional[float] = None,
    temperature: Optional[float] = None,
    prepare_inputs_fn: Optional[Callable[..., dict]] = None,
    update_model_kwargs_fn: Optional[Callable[..., dict]] = None,
    **model_kwargs: Any,
) -> torch.Tensor:
    """Prompts (B, P) to prompts and answers (B, S), S at most `max_length`."""
    assert tokenizer.padding_side == "left", "only left padding is supported"
    if (num_beams > 1 and do_sample is True) or num_beams < 1:
        raise ValueError("unsupported generation mode")
    if num_beams > 1 or do_sample is False:
        raise NotImplementedError
    return _sample(
        model,
        tokenizer,
        input_ids,
        max_length,
        early_stopping=early_stopping,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        top_k=top_k,
        top_p=top_p,
        temperature=temperature,
        prepare_inputs_fn=prepare_inputs_fn,
        update_model_kwargs_fn=update_model_kwargs_fn,
        **model_kwargs,
    )
