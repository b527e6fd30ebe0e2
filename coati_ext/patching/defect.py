"""A defect of upstream as a number that can be measured, with the patches off and on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Tuple


@dataclass(frozen=True)
class Defect:
    """A number that upstream gets wrong and a patch puts right."""

    name: str
    patch: str
    """The patch that repairs it."""
    summary: str
    """What the number is."""
    generations: Tuple[str, ...]
    """The generations that have it."""
    measure: str
    """``module:function`` of no arguments that gives the number, a float, through the installed
    coati. An exception counts as wrong and is reported by its name."""
    right: float = 0.0
    """What the number is when all is well."""
    tolerance: float = 1e-5
    """How far from that it may be."""
