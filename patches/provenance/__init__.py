"""A reward model says in its checkpoint how it was trained, and is not used in another way.

A value head fitted to the mean over all columns gives numbers at EOS too, only meaningless ones,
and nothing in upstream tells (ColossalAI #4475). What a reward model or critic was trained with is
stamped when it is saved and compared when it is loaded: in a state dict's metadata, and beside the
files of a ``Booster``, which every ``Strategy`` and ``save_checkpoint`` of coati goes through.
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
            sites=SITES,  # they rely on signatures alone, so no variant has to be known
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
