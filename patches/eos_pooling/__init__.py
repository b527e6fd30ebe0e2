"""Score a row by the reward head at its last real token (EOS), independent of padding and batch.

Upstream's G1 averages the value head over every column but the last, pads included. G2 to G4 read
the last attended column but pass no position ids to the backbone, so GPT-2 is wrong under left
padding and every rotary model under interior padding. See ColossalAI #4475, #4471.
"""

from __future__ import annotations

from typing import Callable

from coati_ext import Defect, Patch, hookimpl, with_variants

from ..upstream import UPSTREAM
from .defects import DEFECTS
from .options import Options
from .pooling import eos, masked_mean
from .sites import RELIES, SITES

__all__ = ["eos", "masked_mean", "register_defects", "register_options", "register_patches"]


@hookimpl
def register_patches(register: Callable[[Patch], None]) -> None:
    """Declare the patch."""
    register(
        Patch(
            name="eos_pooling",
            summary="the reward of a row is V at its last real token, whatever the padding",
            default=True,
            changes=(
                "Rewards of the same weights change in G1 (EOS instead of a mean over all columns) "
                "and, wherever rows are padded on the left or inside, in G2 to G4. A right-padded "
                "row keeps its reward in G2 to G4."
            ),
            reference="ColossalAI #4475, #4471, #4125",
            sites=with_variants(SITES, UPSTREAM, "eos_pooling"),
            relies=with_variants(RELIES, UPSTREAM, "eos_pooling"),
        )
    )


@hookimpl
def register_options(register: Callable[[str, type], None]) -> None:
    """Declare ``[eos_pooling]``."""
    register("eos_pooling", Options)


@hookimpl
def register_defects(register: Callable[[Defect], None]) -> None:
    """Declare what ``doctor --live`` measures."""
    for defect in DEFECTS:
        register(defect)
