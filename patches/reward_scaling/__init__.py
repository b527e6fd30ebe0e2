"""Give rewards a level and a spread that mean something, which a pairwise loss leaves open.

Adding a constant to every reward, or to one seed's, changes no pairwise loss, so the level of a
reward model is an accident of its training, and what clips or penalises rewards afterwards depends
on it (``docs/defects.md``, D32). Here rewards are shifted and scaled where a reward model returns
them, before anything else: by the mean and spread of reference answers, which ``coati-ext
calibrate`` keeps in the checkpoint's stamp, or by those of all rollouts so far. In the training of
a reward model a centring term can be added to the loss. See ``docs/reward_scaling.md``.
"""

from __future__ import annotations

from typing import Callable

from coati_ext import Patch, hookimpl

from .modes import off, reference, running
from .options import Options
from .sites import RELIES, SITES

__all__ = ["off", "reference", "register_options", "register_patches", "running"]


@hookimpl
def register_patches(register: Callable[[Patch], None]) -> None:
    """Declare the patch."""
    register(
        Patch(
            name="reward_scaling",
            summary="rewards of mean 0 and spread 1, on reference answers or over the rollouts",
            default=False,
            after=("provenance", "rollout", "stable_losses"),
            # Which ask for it, carry it in checkpoints, and see rewards at all.
            needs=("eos_pooling", "provenance", "rollout"),
            changes=(
                "The rewards of a reward model that is not being trained: less a mean, divided by "
                "a spread, once, before clipping. No value of a critic, and no loss unless "
                "reward_scaling.center is set."
            ),
            reference="arXiv 2203.02155, 1909.08593, 2312.09244",
            sites=SITES,
            relies=RELIES,
        )
    )


@hookimpl
def register_options(register: Callable[[str, type], None]) -> None:
    """Declare ``[reward_scaling]``."""
    register("reward_scaling", Options)
