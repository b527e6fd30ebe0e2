"""A defect of upstream, as a number that ``doctor --live`` measures with patches off and on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Tuple

NOT_MEASURED = "not measured"
"""The verdict where ``coati_ext.errors.NotMeasuredError`` was raised; else "right" or "wrong"."""


@dataclass(frozen=True)
class Defect:
    """A number that upstream gets wrong and a patch corrects."""

    name: str
    patch: str
    """The patch that repairs it."""
    summary: str
    """What the number is."""
    generations: Tuple[str, ...]
    """The generations that have it."""
    measure: str
    """``module:function``; it takes no arguments, runs the installed coati and returns the number,
    a float. An exception counts as wrong and is reported by its name, but for
    ``coati_ext.errors.NotMeasuredError``, which says why there is no number here."""
    right: float = 0.0
    """The correct value."""
    tolerance: float = 1e-5
    """The largest accepted distance from ``right``."""
