"""From prompts to experience: one pipeline for every generation of coati.

Each step is a choice hook (a hook with exactly one active implementation), called in the order of
this file. An adapter per generation converts the result to that generation's ``Experience``. The
hooks return log-probabilities of actions, values before actions and scores of rows, never logits.

Letters: B rows, P prompt columns, A action columns, S = P + A sequence columns.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from coati_ext import tensors
from coati_ext.active import choice, options
from coati_ext.rollout import host, ranks
from coati_ext.rollout.frame import Frame
from coati_ext.rollout.inside import language_model
from coati_ext.rollout.models import without_dropout
from coati_ext.rollout.packing.tree import unique_tokens
from coati_ext.rollout.scores import scaled_rollout, scores_of_rows
from coati_ext.rollout.values import state_values

_AT_ONCE = 2048  # different tokens of one forward in scoring, so that memory stays where B grows


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
    """Batch size for sampling and scoring. By default all rows are sampled, and few enough of them
    scored at once that their memory does not grow."""
    forward_rows: Optional[int] = None
    """Batch size for log-probabilities of actors that return all logits; by default that of
    scoring."""


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
    """(B,) of the reward model, as ``scale_reward`` has it, without clipping or penalties."""
    new_tokens: int
    """Maximum answer length in tokens; A is smaller if every answer ended earlier."""
    parts: Sequence[slice]
    """The rows of each forward, as many parts on every rank."""


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
    parts = _scored_at_once(frame, request.sample_rows)
    log_probs, base = (
        _by_parts(partial(_log_probs, model, frame), _of_actor(model, frame, request, parts))
        for model in (maker.actor, maker.initial_model)
    )
    given = extras(frame) if extras else {}
    score = _by_parts(
        lambda rows: scores_of_rows(
            maker, frame.rows(rows), {key: item[rows] for key, item in given.items()}
        ),
        parts,
    )
    score = scaled_rollout(maker, score)
    return Rollout(frame, ended, log_probs, log_probs - base, score, new_tokens, parts)


def judge(
    maker: Any, rollout: Rollout, gamma: float, lam: float, rows: Optional[int] = None
) -> Judgement:
    """Values, rewards and advantages of each action.

    Args:
        maker: the experience maker, with ``critic`` and ``kl_coef``.
        rollout: from :func:`roll_out`.
        gamma: discount per action.
        lam: GAE's lambda.
        rows: batch size of the critic; by default that of the rollout's other models.

    Raises:
        ValueError: there is no critic.
    """
    if maker.critic is None:
        raise ValueError("the experience maker has no critic: expected one to estimate advantages")
    frame, mask = rollout.frame, rollout.frame.action_mask
    parts = _slices(mask.size(0), rows) if rows else rollout.parts
    values = _by_parts(lambda part: state_values(maker.critic, frame.rows(part)), parts)
    values = values.masked_fill(~mask, 0)
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
            "make_experience was called without max_length: expected the most tokens that prompt "
            "and answer may have together"
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


def _scored_at_once(frame: Frame, at_once: Optional[int]) -> Sequence[slice]:
    """The rows of each forward in scoring: few enough tokens, and as many parts on every rank.

    Ranks have to make as many forwards, since wrappers gather parameters and buffers in each.
    """
    rows = frame.sequences.size(0)
    if at_once:
        return _slices(rows, at_once)
    ids, mask = host.array_of(frame.sequences), host.array_of(frame.attention_mask)
    wanted = math.ceil(unique_tokens(ids, mask) / _AT_ONCE)
    count = min(rows, ranks.largest(wanted, frame.sequences.device))
    tokens = mask.sum(axis=1).cumsum()
    # A part ends where its share of the tokens is reached, and leaves the later ones a row each.
    ends = [0]
    for part in range(1, count):
        end = int(tokens.searchsorted(tokens[-1] * part / count, side="right"))
        ends.append(min(max(end, ends[-1] + 1), rows - count + part))
    return [slice(first, end) for first, end in zip(ends, [*ends[1:], rows])]


def _of_actor(
    model: Any, frame: Frame, request: Request, parts: Sequence[slice]
) -> Sequence[slice]:
    """The rows of each forward of an actor, whose logits may all be held."""
    if request.forward_rows and language_model(model) is None:
        return _slices(frame.sequences.size(0), request.forward_rows)
    return parts


def _slices(rows: int, at_once: Optional[int]) -> Sequence[slice]:
    step = at_once or rows
    return [slice(start, start + step) for start in range(0, rows, step)]


def _by_parts(compute: Callable[[slice], Tensor], parts: Sequence[slice]) -> Tensor:
    """Compute a tensor for all rows, one part of them after another."""
    found = [compute(rows) for rows in parts]
    return found[0] if len(found) == 1 else torch.cat(found)
