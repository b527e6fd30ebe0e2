"""Losses that are finite with finite gradients, masked, and agreed upon by all ranks.

``-log(sigmoid(d))`` and ``log(1 + exp(-d))`` overflow written out (at a margin of -18 and -12 in
fp16, -89 in fp32); upstream uses ``logsigmoid`` for the first since its third generation. The
trainer of G3 and G4 builds its default loss with an argument that the loss does not have. PPO's
policy loss overflows at a log-ratio of 89, its value loss is nan without an action, or has no mask;
and whether a step of G3 and G4 is skipped is decided by each rank for itself, so that one can wait
forever for the backward of another.
"""

from __future__ import annotations

from typing import Callable

from coati_ext import Defect, Patch, hookimpl, with_variants

from ..upstream import UPSTREAM
from .defects import DEFECTS
from .options import Options
from .sites import SITES


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
