"""Patch all processes of a job, and verify that all ranks have identical patches and settings.

``flag`` parses ``COATI_EXT``, ``imports`` shows imports to a guard, ``watch`` is the guard that
waits in every process for the first import of coati, ``installation`` finds the processes that the
start-up file does not reach, ``ray`` configures the workers of a Ray cluster, and ``rank_check``
compares the plans of all ranks.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing would slow down the start of every armed process
if TYPE_CHECKING:
    from coati_ext.launch.ray import ray_hook, ray_runtime_env

__all__ = ["ray_hook", "ray_runtime_env"]


def __getattr__(name: str) -> object:
    if name in __all__:
        from coati_ext.launch import ray

        return getattr(ray, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
