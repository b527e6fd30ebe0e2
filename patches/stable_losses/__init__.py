"""Losses with finite values and gradients, with masks, and with one skip decision for all ranks.

``-log(sigmoid(d))`` and ``log(1 + exp(-d))`` overflow if computed as written (at a margin of -18
and -12 in fp16, -89 in fp32); from G3 on, upstream uses ``logsigmoid`` for the first. The trainer
of G3 and G4 creates its default loss with an argument that the loss does not take. PPO's policy
loss overflows at a log-ratio of 89. Its value loss is nan without an action (G3, G4) or has no mask
(G1, G2). In G3 and G4 each rank decides alone whether to skip a step, so the other ranks can hang
in the backward pass.
"""

from __future__ import annotations

from typing import Callable

from coati_ext import Defect, Patch, hookimpl, with_variants

from ..upstream import UPSTREAM
from .defects import DEFECTS
from .options import Options
from .sites import RELIES, SITES


@hookimpl
def register_patches(register: Callable[[Patch], None]) -> None:
    """Declare the patch."""
    register(
        Patch(
            name="stable_losses",
            summary="pairwise losses finite at any margin; RewardModelTrainer(loss_fn=None) works",
            default=True,
            changes="None where upstream's losses are finite; half-precision losses come in fp32.",
            reference="ColossalAI #3490; arXiv 2203.02155, 2204.05862",
            sites=with_variants(SITES, UPSTREAM, "stable_losses"),
            relies=with_variants(RELIES, UPSTREAM, "stable_losses"),
        )
    )


@hookimpl
def register_options(register: Callable[[str, type], None]) -> None:
    """Declare ``[stable_losses]``."""
    register("stable_losses", Options)


@hookimpl
def register_defects(register: Callable[[Defect], None]) -> None:
    """Declare what ``doctor --live`` measures."""
    for defect in DEFECTS:
        register(defect)
