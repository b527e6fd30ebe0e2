"""Measure the sampler and the ends of answers."""

from __future__ import annotations

from typing import Any

from .making import PROMPTS, ROOM, actions_of, sampled, seeded


def measure_repeats() -> float:
    """The share of answers that are sampled again in the next rollout of the same prompts."""
    from coati_ext.testing import experience_maker, tiny_models, tiny_tokenizer

    tokenizer = tiny_tokenizer(padding_side="left")
    maker = experience_maker(tiny_models("llama"), tokenizer=tokenizer)
    with seeded():
        first, second = (
            actions_of(sampled(maker, tokenizer, PROMPTS, max_length=ROOM)) for _ in range(2)
        )
    return sum(a == b for a, b in zip(first, second)) / len(first)


def measure_no_stops() -> float:
    """The number of answers lost if stop_token_ids is None."""
    return _lost_answers(stop_token_ids=None)


def measure_no_truth() -> float:
    """The number of answers lost if gt_answer is None."""
    return _lost_answers(gt_answer=None)


def _lost_answers(**generate_kwargs: Any) -> float:
    from coati_ext.testing import experience_maker, tiny_models, tiny_tokenizer

    tokenizer = tiny_tokenizer(padding_side="left")
    maker = experience_maker(tiny_models("llama"), tokenizer=tokenizer)
    with seeded():  # answers are cut off after four tokens
        made = sampled(maker, tokenizer, PROMPTS, max_length=12, **generate_kwargs)
    return float(len(PROMPTS) - len(made.sequences))


def measure_pads_without_room() -> float:
    """The number of pads among the actions if max_new_tokens exceeds the room in max_length."""
    return _pads_among_actions(max_new_tokens=12)


def measure_pads_after_cut() -> float:
    """The number of pads among the actions of answers cut off after three tokens."""
    return _pads_among_actions(max_new_tokens=3)


def _pads_among_actions(max_new_tokens: int) -> float:
    from coati_ext.testing import experience_maker, tiny_models, tiny_tokenizer

    tokenizer = tiny_tokenizer(padding_side="left")
    maker = experience_maker(tiny_models("llama"), tokenizer=tokenizer)
    made = sampled(maker, tokenizer, PROMPTS, max_length=16, max_new_tokens=max_new_tokens, top_k=1)
    return float(sum(tokens.count(tokenizer.pad_token_id) for tokens in actions_of(made)))
