"""Compute real tokens only: pads cost nothing, and what rows share at their head is computed once.

Reward model, critic, actor and reference ask for the last hidden states of their backbone by one
hook. Here are its implementations, which all return the same numbers. See ``docs/token_saving.md``.
"""

from __future__ import annotations

from typing import Callable

from coati_ext import Patch, hookimpl

from .levels import auto, groups, off, packed, prefix, report_made
from .options import Options
from .sites import RELIES, SITES

__all__ = [
    "auto",
    "groups",
    "off",
    "packed",
    "prefix",
    "register_options",
    "register_patches",
    "report_made",
]


@hookimpl
def register_patches(register: Callable[[Patch], None]) -> None:
    """Declare the patch."""
    register(
        Patch(
            name="token_saving",
            summary="real tokens only, shared prompts once: the same numbers for less",
            default=True,
            changes=(
                "Nothing but time and memory: rewards, values, log-probabilities and gradients "
                "equal those of each row alone, up to the order of sums."
            ),
            reference="arXiv 2410.20305, 2511.00413; ColossalAI #4360, #3100",
            sites=SITES,
            relies=RELIES,
        )
    )


@hookimpl
def register_options(register: Callable[[str, type], None]) -> None:
    """Declare ``[token_saving]``."""
    register("token_saving", Options)
