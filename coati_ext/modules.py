"""The old name of :mod:`coati_ext.rollout.models`, kept for existing plugins."""

from __future__ import annotations

from coati_ext.rollout.models import (
    accepts,
    frame_inputs,
    head_dtype,
    layers_of,
    without_dropout,
)

__all__ = ["accepts", "frame_inputs", "head_dtype", "layers_of", "without_dropout"]
