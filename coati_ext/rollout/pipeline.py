"""From prompts to experience: one pipeline for every generation of coati.

Each step is a choice hook, called in the order of this file; an adapter of each generation turns
what comes out into that generation's ``Experience``. The models are asked for log-probabilities at
actions, values before actions and the score of a row, never for logits.

Letters: B rows, P prompt columns, A action columns, S = P + A sequence columns.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from coati_ext import tensors
from coati_ext.active import choice, options
from coati_ext.rollout import ranks
from coati_ext.rollout.frame import Frame
from coati_ext.rollout.models import without_dropout


@dataclass(frozen=True)
class Request:
    """What a call of ``make_experience`` asks for, in words that fit every generation."""

    input_ids: Tensor
    """(B, S) int64."""
    attention_mask: Tensor
    """(B, S) non-zero for real tokens."""
    stops: Tuple[Tuple[int, ...], ...]
    """What ends an answer: the end token, and stop sequences."""
    pad_token_id: Optional[int]
    generate_kwargs: Mapping[str, Any]
    sample_rows: Optional[int] = None
    """Rows to sample and score at once; all of them by default."""
    forward_rows: Optional[int] = None
    """Rows whose log-probabilities are computed at once; all of them by default."""


@dataclass(frozen=True)
class Rollout:
    """Sampled answers and what the four models make of them."""

    frame: Frame
    ended: Tensor
    """(B,) bool, false for answers that were cut off."""
    log_probs: Tensor
    """(B, A) of the actor, zero where there is no action."""
    log_ratio: Tensor
    """(B, A) log actor less log reference, zero where there is no action."""
    score: Tensor
    """(B,) of the reward model, as it gave it."""
    new_tokens: int
    """Answer tokens that there was room for; A is smaller where every answer ended earlier."""


@dataclass(frozen=True)
class Judgement:
    """What an actor-critic step learns from."""

    values: Tensor
    """(B, A) before each action, zero where there is none."""
    rewards: Tensor
    """(B, A) of each action, zero where there is none."""
    advantages: Tensor
    """(B, A) of each action, zero where there is none."""


def roll_out(
    maker: Any, request: Request, extras: Optional[Callable[[Frame], Dict[str, Any]]] = None
) -> Rollout:
    """Sample answers and score them.

    Args:
        maker: the experience maker, with ``actor``, ``initial_model`` and ``reward_model``.
        request: what to sample.
        extras: gives the further arguments of the reward model for some rows of the frame, as
            lists of one item a row.

    Raises:
        ValueError: ``max_length`` is missing, or a prompt has no real token.
    """
    for model in (maker.actor, maker.critic, maker.initial_model, maker.reward_model):
        if model is not None:
            model.eval()
    for model in (maker.actor, maker.critic):  # what the training steps will recompute
        if model is not None:
            without_dropout(model)
    frame, ended, new_tokens = sample(maker, request)
    log_probs, base = (
        _by_rows(partial(_log_probs, model, frame), frame, request.forward_rows)
        for model in (maker.actor, maker.initial_model)
    )
    given = extras(frame) if extras else {}
    score = _by_rows(
        lambda rows: choice("score_rows")(
            maker.reward_model, frame.rows(rows), {key: item[rows] for key, item in given.items()}
        ),
        frame,
        request.sample_rows,
    )
    return Rollout(frame, ended, log_probs, log_probs - base, score, new_tokens)


def judge(
    maker: Any, rollout: Rollout, gamma: float, lam: float, rows: Optional[int] = None
) -> Judgement:
    """Values, rewards and advantages of each action.

    Args:
        maker: the experience maker, with ``critic`` and ``kl_coef``.
        rollout: what it rolled out.
        gamma: discount per action.
        lam: lambda of generalised advantage estimation.
        rows: rows that the critic evaluates at once; all of them by default.

    Raises:
        ValueError: there is no critic.
    """
    if maker.critic is None:
        raise ValueError("the experience maker has no critic: expected one to estimate advantages")
    frame, mask = rollout.frame, rollout.frame.action_mask
    values = _by_rows(
        lambda part: choice("state_values")(maker.critic, frame.rows(part)), frame, rows
    ).masked_fill(~mask, 0)
    settings = options("rollout")
    score = rollout.score
    if settings.score_clip:
        score = score.clamp(-settings.score_clip, settings.score_clip)
    score = score - settings.missing_eos_penalty * (~rollout.ended)
    rewards = choice("shape_reward")(score, rollout.log_ratio, mask, maker.kl_coef)
    advantages = choice("estimate_advantages")(values, rewards, mask, gamma, lam)
    return Judgement(values, rewards, advantages)


def sample(maker: Any, request: Request) -> Tuple[Frame, Tensor, int]:
    """Sample answers to the prompts and put them into one frame.

    Returns:
        The frame, whether each answer ended (B,) bool, and how many tokens one could have.
    """
    given = tensors.token_mask(request.input_ids, request.attention_mask)
    prompts, mask = choice("align_prompts")(request.input_ids, given)
    width = prompts.size(1)
    new_tokens = _room(request, width)
    pieces: List[Tuple[Tensor, Tensor, Tensor]] = []
    for rows in _slices(prompts.size(0), request.sample_rows):
        if new_tokens > 0:
            with ranks.sampling_stream(maker.actor, prompts.device):
                sequences = choice("sample_answers")(
                    maker, prompts[rows], mask[rows], new_tokens, request.generate_kwargs
                )
            actions, ended = choice("mark_actions")(sequences, width, request.stops)
        else:  # a column that is no action keeps every shape as the trainer expects it
            sequences = pad(prompts[rows], (0, 1))
            actions = torch.zeros_like(sequences[:, width:], dtype=torch.bool)
            ended = actions.any(dim=1)
        pieces.append((sequences, actions, ended))
    total = max(sequences.size(1) for sequences, _, _ in pieces)
    sequences = torch.cat([pad(item, (0, total - item.size(1))) for item, _, _ in pieces])
    actions = torch.cat([pad(item, (0, total - width - item.size(1))) for _, item, _ in pieces])
    attention = torch.cat([mask, actions], dim=1)
    # Also a copy: upstream samples in inference mode, whose tensors cannot be trained on.
    sequences = sequences.masked_fill(~attention, request.pad_token_id or 0)
    ended = torch.cat([item for _, _, item in pieces])
    return Frame.of(sequences, attention, actions), ended, new_tokens


def _log_probs(model: Any, frame: Frame, rows: slice) -> Tensor:
    part = frame.rows(rows)
    log_probs: Tensor = choice("action_log_probs")(model, part)
    return log_probs.masked_fill(~part.action_mask, 0)


def _room(request: Request, width: int) -> int:
    """How many tokens to sample: what upstream would, if it fits into ``max_length``."""
    try:
        longest = request.generate_kwargs["max_length"]
    except KeyError:
        raise ValueError(
            "make_experience has no max_length: expected the longest prompt and answer together"
        ) from None
    given = request.input_ids.size(1)
    asked = request.generate_kwargs.get("max_new_tokens") or longest - given
    fits = longest - width
    new_tokens = min(asked, fits) if asked > 0 else fits
    # What fits depends on each rank's prompts, and samplers wait for each other at each step.
    new_tokens = ranks.smallest(new_tokens, request.input_ids.device)
    if new_tokens <= 0:
        warnings.warn(
            f"no answers are sampled for {request.input_ids.size(0)} prompts: the longest has "
            f"{width} tokens and max_length is {longest}",
            stacklevel=2,
        )
    return int(new_tokens)


def _slices(rows: int, at_once: Optional[int]) -> Sequence[slice]:
    step = at_once or rows
    return [slice(start, start + step) for start in range(0, rows, step)]


def _by_rows(compute: Callable[[slice], Tensor], frame: Frame, at_once: Optional[int]) -> Tensor:
    """A tensor of all rows, computed some rows at a time."""
    parts = [compute(rows) for rows in _slices(frame.sequences.size(0), at_once)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
