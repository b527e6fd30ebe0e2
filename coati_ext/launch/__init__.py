"""How the processes of a job are reached and compared.

``flag`` says what ``COATI_EXT`` means, ``watch`` waits in every process for the first import of
coati, ``installation`` says which processes that start-up file reaches, ``ray`` reaches the workers
of a cluster, and ``rank_check`` compares the plans of all ranks when they meet.
"""

from __future__ import annotations

TYPE_CHECKING = False  # every armed process imports this package when it starts
if TYPE_CHECKING:
    from coati_ext.launch.ray import ray_hook, ray_runtime_env

__all__ = ["ray_hook", "ray_runtime_env"]


def __getattr__(name: str) -> object:
    if name in __all__:
        from coati_ext.launch import ray

        return getattr(ray, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
