"""Curves that tell whether a training is healthy, in the trainer's own TensorBoard or W&B log.

Upstream logs means over padded batches, and of the rewards only their level, which a pairwise loss
leaves open. This plugin looks on through the observers that any plugin has and changes no number.
``observers`` adds up sums on the device, ``log`` reads them once when they are written. See
``docs/metrics.md`` for each curve, and ColossalAI #3574, #3888 for who has asked for them.
"""

from __future__ import annotations

from typing import Callable

from coati_ext import Patch, hookimpl

from .observers import (
    experience_made,
    policy_step,
    reward_evaluated,
    reward_step,
    rows_scored,
    tokens_computed,
)
from .options import Options
from .sites import RELIES, SITES

__all__ = [
    "experience_made",
    "policy_step",
    "register_options",
    "register_patches",
    "reward_evaluated",
    "reward_step",
    "rows_scored",
    "tokens_computed",
]


@hookimpl
def register_patches(register: Callable[[Patch], None]) -> None:
    """Declare the patch."""
    register(
        Patch(
            name="metrics",
            summary="curves of rewards, pads, KL, ratios and values in the trainer's own log",
            default=True,
            changes="Nothing that is learnt: it looks on.",
            reference="ColossalAI #3574, #3888; arXiv 1706.04599",
            sites=SITES,
            relies=RELIES,
        )
    )


@hookimpl
def register_options(register: Callable[[str, type], None]) -> None:
    """Declare ``[metrics]``."""
    register("metrics", Options)
