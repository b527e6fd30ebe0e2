"""The configuration section ``[distributed]``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """``[distributed]``, which has no option except ``enabled``."""
