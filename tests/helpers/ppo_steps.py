"""Training steps of upstream's own PPO trainer, and what reaches its losses."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any, List, NamedTuple

import torch
from torch import Tensor

from coati_ext.patching.patch import GENERATIONS
from coati_ext.testing import (
    families,
    make_experience,
    ppo_trainer,
    tiny_tokenizer,
    training_step,
)
from coati_ext.testing.padding import pad_rows
from helpers.upstreams import Upstream

LENGTH = 24
PROMPTS = [[1, 9, 8, 7], [1, 5], [1, 14, 6, 33, 21, 40, 17, 30], [1, 2, 7, 2, 8]]
ANSWERS = [[20, 21, 22, 2], [23, 24, 25, 26, 27, 28, 2], [29, 2], [30, 31, 32, 33, 34]]


class Step(NamedTuple):
    """What one training step gave to its two losses, and what it returned."""

    log_probs: Tensor
    old_log_probs: Tensor
    advantages: Tensor
    values: Tensor
    old_values: Tensor
    target: Tensor
    returned: Any


def record(trainer) -> List[Any]:
    """The arguments of each call of the trainer's two losses, from now on."""
    calls: List[Any] = []
    for loss in (trainer.actor_loss_fn, trainer.critic_loss_fn):

        def recorded(*given, forward=loss.forward, **more):
            calls.append([item.detach() for item in given[:3]])
            return forward(*given, **more)

        loss.forward = recorded
    return calls


def take_step(trainer, experience) -> Step:
    held = {name: loss.forward for name, loss in losses_of(trainer).items()}
    calls = record(trainer)
    try:
        returned = training_step(trainer, experience)
    finally:
        for name, loss in losses_of(trainer).items():
            loss.forward = held[name]
    policy, value = calls
    return Step(*policy, *value, returned)


def losses_of(trainer):
    return {name: getattr(trainer, name) for name in ("actor_loss_fn", "critic_loss_fn")}


def largest_change(step, experience):
    """max |ratio - 1| and max |new value - old value| over real actions."""
    real = experience.action_mask.bool()
    ratio = (step.log_probs - step.old_log_probs)[real].exp()
    moved = (step.values - step.old_values).abs()
    moved = moved[real] if moved.dim() == 2 else moved
    return float((ratio - 1).abs().max()), float(moved.max())


def prompts(tokenizer, width=12):
    return pad_rows(PROMPTS, pad_token_id=tokenizer.pad_token_id, side="left", width=width)


# What a pad does is between the data and the masks, what a family does between the masks and its
# outputs, and advantages are made of those: so each family has both kinds of pads, and each
# generation has every pair of pads and advantages, but not every family with each.


def tokenizer_for(family: str, upstream: Upstream) -> Any:
    """One whose pad is a token of its own or the end token."""
    number = families().index(family) + GENERATIONS.index(upstream.generation)
    return tiny_tokenizer(pad=("pad", "eos")[number % 2], padding_side="left")


def advantage_for(family: str, upstream: Upstream) -> str:
    """Of a whole answer, or of each token."""
    number = families().index(family) // 2 + GENERATIONS.index(upstream.generation)
    return ("sequence", "gae")[number % 2]


def trainer_of(models, tokenizer, **options):
    trainer = ppo_trainer(models, tokenizer=tokenizer, max_length=LENGTH, **options)
    trainer.writer = None  # else set when fitting begins
    return trainer


def experience_of(trainer, tokenizer, **given):
    return make_experience(
        trainer.experience_maker,
        *prompts(tokenizer),
        tokenizer=tokenizer,
        **{"max_length": LENGTH, **given},
    )


def scripted(monkeypatch, answers=ANSWERS, pad=0):
    """Let upstream's sampler answer with these, as it would: padded to the longest."""
    columns, _ = pad_rows(answers, pad_token_id=pad, side="right")
    import_module("coati.experience_maker")
    sampler = import_module("coati.models.generation").generate

    def script(model, input_ids, *_, **__):
        return torch.cat([input_ids, columns], dim=1)

    for name, module in list(sys.modules.items()):
        if name.startswith("coati.") and vars(module).get("generate") is sampler:
            monkeypatch.setattr(module, "generate", script)


def buffer_of(trainer):
    """A trainer's buffer, under the name that its release has for it."""
    names = ("data_buffer", "buffer", "replay_buffer")
    return next(getattr(trainer, name) for name in names if hasattr(trainer, name))


def through_the_buffer(trainer, experience):
    buffer = buffer_of(trainer)
    buffer.append(experience)
    return buffer.collate_fn([buffer[i] for i in range(len(buffer))])
