"""``ray.remote``, or nothing where Ray is not installed; upstream needs Ray."""

from __future__ import annotations

try:
    from ray import remote
except ImportError:

    def remote(cls):
        return cls


__all__ = ["remote"]
