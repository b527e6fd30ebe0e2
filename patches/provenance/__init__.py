"""Checkpoints say how their reward model was trained, and loading checks this against the run.

A value head trained on the mean over all columns still returns numbers at EOS, but meaningless
ones, and upstream does not detect this (ColossalAI #4475). So a reward model or critic gets a stamp
when it is saved: metadata on how its rows were pooled, padded and tokenized. It is compared when
the model is loaded. Stamps are in the metadata of state dicts, and beside the files that a
``Booster`` saves, as every ``Strategy`` and ``save_checkpoint`` of coati does.
"""

from __future__ import annotations

from typing import Callable

from coati_ext import Defect, Patch, hookimpl

from .defects import DEFECTS
from .options import Options
from .sites import SITES


@hookimpl
def register_patches(register: Callable[[Patch], None]) -> None:
    """Declare the patch."""
    register(
        Patch(
            name="provenance",
            summary="a checkpoint says how its reward model was trained; no other use of it",
            default=True,
            after=("left_padding", "rollout", "stable_losses"),
            changes=(
                "No number of a run that used its reward model as it was trained. Saving a reward "
                "model or critic stamps it with its pooling, padding, position ids, end token, "
                "tokenizer, generation and plan; loading a reward model of another form is an "
                "error. State-dict keys stay as they are. Weights that were saved inside a "
                "wrapper, as by G2's script, are loaded instead of ignored."
            ),
            reference="ColossalAI #4475, #3492",
            sites=SITES,  # checked by signature only, so they need no variants
        )
    )


@hookimpl
def register_options(register: Callable[[str, type], None]) -> None:
    """Declare ``[provenance]``."""
    register("provenance", Options)


@hookimpl
def register_defects(register: Callable[[Defect], None]) -> None:
    """Declare what ``doctor --live`` measures."""
    for defect in DEFECTS:
        register(defect)
