"""From prompts to experience: one pipeline for every generation of coati.

Each step is a choice hook (a hook with exactly one active implementation), called in the order of
this file. An adapter per generation converts the result to that generation's ``Experience``. The
hooks return log-probabilities of actions, values before actions and scores of rows, never logits.

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
from coati_ext.rollout.values import state_values


@dataclass(frozen=True)
class Request:
    """The arguments of ``make_experience``, independent of the generation."""

    input_ids: Tensor
    """(B, S) int64."""
    attention_mask: Tensor
    """(B, S) non-zero for real tokens."""
    stops: Tuple[Tuple[int, ...], ...]
    """Token sequences that end an answer: the EOS token and other stop sequences."""
    pad_token_id: Optional[int]
    generate_kwargs: Mapping[str, Any]
    sample_rows: Optional[int] = None
    """Batch size for sampling and scoring; all rows by default."""
    forward_rows: Optional[int] = None
    """Batch size for log-probabilities; all rows by default."""


@dataclass(frozen=True)
class Rollout:
    """Sampled answers with log-probabilities and scores, before values and advantages."""

    frame: Frame
    ended: Tensor
    """(B,) bool, false for answers that were cut off."""
    log_probs: Tensor
    """(B, A) of the actor, zero where there is no action."""
    log_ratio: Tensor
    """(B, A) log actor minus log reference, zero where there is no action."""
    score: Tensor
    """(B,) of the reward model, without clipping or penalties."""
    new_tokens: int
    """Maximum answer length in tokens; A is smaller if every answer ended earlier."""


@dataclass(frozen=True)
class Judgement:
    """Values, rewards and advantages of a rollout, the inputs of an actor-critic step."""

    values: Tensor
    """(B, A) of the state before each action, zero where there is no action."""
    rewards: Tensor
    """(B, A) of each action, zero where there is no action."""
    advantages: Tensor
    """(B, A) of each action, zero where there is no action."""


def roll_out(
    maker: Any, request: Request, extras: Optional[Callable[[Frame], Dict[str, Any]]] = None
) -> Rollout:
    """Sample answers, and compute their log-probabilities and scores.

    Args:
        maker: the experience maker, with ``actor``, ``initial_model`` and ``reward_model``.
        request: what to sample.
        extras: returns further arguments of the reward model from the frame, as lists with one item
            per row.

    Raises:
        ValueError: ``max_length`` is missing, or a prompt has no real token.
    """
    for model in (maker.actor, maker.critic, maker.initial_model, maker.reward_model):
        if model is not None:
            model.eval()
    # A training step calls these two again, in train mode.
    for model in (maker.actor, maker.critic):
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
        rollout: from :func:`roll_out`.
        gamma: discount per action.
        lam: GAE's lambda.
        rows: batch size of the critic; all rows by default.

    Raises:
        ValueError: there is no critic.
    """
    if maker.critic is None:
        raise ValueError("the experience maker has no critic: expected one to estimate advantages")
    frame, mask = rollout.frame, rollout.frame.action_mask
    values = _by_rows(
        lambda part: state_values(maker.critic, frame.rows(part)), frame, rows
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
        The frame, whether each answer ended (B,) bool, and the maximum answer length in tokens.
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
        else:  # the trainer needs at least one column, here fully masked
            sequences = pad(prompts[rows], (0, 1))
            actions = torch.zeros_like(sequences[:, width:], dtype=torch.bool)
            ended = actions.any(dim=1)
        pieces.append((sequences, actions, ended))
    total = max(sequences.size(1) for sequences, _, _ in pieces)
    sequences = torch.cat([pad(item, (0, total - item.size(1))) for item, _, _ in pieces])
    actions = torch.cat([pad(item, (0, total - width - item.size(1))) for _, item, _ in pieces])
    attention = torch.cat([mask, actions], dim=1)
    # masked_fill also copies: upstream samples in inference mode, and autograd cannot save such
    # tensors.
    sequences = sequences.masked_fill(~attention, request.pad_token_id or 0)
    ended = torch.cat([item for _, _, item in pieces])
    return Frame.of(sequences, attention, actions), ended, new_tokens


def _log_probs(model: Any, frame: Frame, rows: slice) -> Tensor:
    part = frame.rows(rows)
    log_probs: Tensor = choice("action_log_probs")(model, part)
    return log_probs.masked_fill(~part.action_mask, 0)


def _room(request: Request, width: int) -> int:
    """How many tokens to sample: upstream's number, limited by ``max_length``."""
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
    # The limit depends on each rank's prompts, but distributed samplers run in lockstep.
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
    """Compute a tensor for all rows in batches of ``at_once`` rows."""
    parts = [compute(rows) for rows in _slices(frame.sequences.size(0), at_once)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
