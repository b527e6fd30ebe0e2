"""The configuration section ``[stable_losses]``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """``[stable_losses]``, which has no option except ``enabled``."""
