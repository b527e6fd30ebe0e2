"""Left-padded rows that keep their EOS token, in all reward-model and prompt datasets.

Upstream pads on the tokenizer's side. It truncates long rows at the end, which drops the EOS token
of an answer and the assistant header of a prompt. It masks prompts by ``ids != pad``, which masks
real tokens if ``pad == eos``. With this patch rows are left-padded, truncated at the start and
masked by their lengths; upstream's code still tokenizes and collates. DPO and ORPO share the
preference collator with the reward model, but their actor gets no position ids. So that collator
changes only what the reward-model trainer reads.
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
            name="left_padding",
            summary="one left-padded frame: rows cut at their head, ending in their end token",
            default=True,
            changes=(
                "The rows of reward-model training, and prompts, come left-padded. Longer ones "
                "than max_length keep their end and lose their head (BOS stays). With pad == eos, "
                "G3 and G4 prompts keep their real eos tokens. In G3 and G4 every other trainer "
                "(SFT, DPO, ORPO, KTO) and every script that calls a preference collator itself "
                "gets upstream's rows."
            ),
            reference="ColossalAI #4475, #3235, #4125",
            sites=with_variants(SITES, UPSTREAM, "left_padding"),
            relies=with_variants(RELIES, UPSTREAM, "left_padding"),
        )
    )


@hookimpl
def register_options(register: Callable[[str, type], None]) -> None:
    """Declare ``[left_padding]``."""
    register("left_padding", Options)


@hookimpl
def register_defects(register: Callable[[Defect], None]) -> None:
    """Declare what ``doctor --live`` measures."""
    for defect in DEFECTS:
        register(defect)
