"""The name under which plugins were told of :mod:`coati_ext.rollout.models`; it stays."""

from __future__ import annotations

from coati_ext.rollout.models import (
    accepts,
    frame_inputs,
    head_dtype,
    layers_of,
    without_dropout,
)

__all__ = ["accepts", "frame_inputs", "head_dtype", "layers_of", "without_dropout"]
