"""What the processes of a job have to agree upon. Alone, each function gives its input back."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Iterator, Optional

import torch
import torch.distributed as dist
from torch import Tensor

from coati_ext.rollout.models import layers_of


def several() -> bool:
    """Whether this process is one of several."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def is_first() -> bool:
    """Whether this process is the first of several, or alone."""
    return not several() or dist.get_rank() == 0


def total(values: Tensor) -> Tensor:
    """The sum over all ranks, element by element."""
    if several():
        values = values.clone()
        dist.all_reduce(values)
    return values


def smallest(number: int, device: torch.device) -> int:
    """The smallest of the ranks' numbers."""
    if not several():
        return number
    shared = torch.tensor([number], device=device)
    dist.all_reduce(shared, op=dist.ReduceOp.MIN)
    return int(shared)


@contextmanager
def sampling_stream(model: Any, device: torch.device) -> Iterator[None]:
    """Random numbers for sampling: equal within a tensor-parallel group, else a rank's own.

    Alone, a process samples from the generator that its user seeded. Launchers seed every rank
    alike, so several would sample with the same noise: there, each rollout takes one number from
    that generator, the leader of each tensor-parallel group adds its rank, and its group samples
    from the outcome. The generators are afterwards as if only that number had been drawn.

    Args:
        model: the actor, as the plugin wrapped it.
        device: where the sampling is done.
    """
    if not several():
        yield
        return
    group = _tensor_parallel_group(model)
    members = dist.get_process_group_ranks(group) if group is not None else [dist.get_rank()]
    seed = torch.randint(2**62, (1,)) + members[0]
    if len(members) > 1:
        shared = seed.to(device)
        dist.broadcast(shared, src=members[0], group=group)
        seed = shared
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(seed))
        yield


def _tensor_parallel_group(model: Any) -> Optional[Any]:
    groups = (getattr(layer, "tp_group", None) for layer in layers_of(model))
    return next((group for group in groups if group is not None), None)
