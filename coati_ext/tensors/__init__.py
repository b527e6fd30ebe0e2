"""Pure functions of tensors. Loaded on first use, so that a patch can be declared without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coati_ext.tensors.frame import left_frame, position_ids, token_mask
    from coati_ext.tensors.losses import pairwise_loss

_HOMES = {
    "left_frame": "coati_ext.tensors.frame",
    "pairwise_loss": "coati_ext.tensors.losses",
    "position_ids": "coati_ext.tensors.frame",
    "token_mask": "coati_ext.tensors.frame",
}

__all__ = ["left_frame", "pairwise_loss", "position_ids", "token_mask"]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        from importlib import import_module

        function = getattr(import_module(_HOMES[name]), name)
        globals()[name] = function
        return function
    raise AttributeError(f"module 'coati_ext.tensors' has no attribute {name!r}")
