"""The configuration section ``[left_padding]``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """``[left_padding]``, which has no option except ``enabled``."""
