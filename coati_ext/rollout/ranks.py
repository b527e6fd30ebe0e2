"""Collectives over the ranks of a job. In a single process they return their input."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Iterator, Optional

import torch
import torch.distributed as dist
from torch import Tensor

from coati_ext.rollout.models import layers_of


def several() -> bool:
    """Whether ``torch.distributed`` is initialised with more than one rank."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def is_first() -> bool:
    """Whether this process is rank 0, or the only process."""
    return not several() or dist.get_rank() == 0


def total(values: Tensor) -> Tensor:
    """The sum over all ranks, element by element."""
    if several():
        values = values.clone()
        dist.all_reduce(values)
    return values


def each(values: Tensor) -> Tensor:
    """The values of every rank, stacked in their order: (ranks, ...)."""
    if not several():
        return values.unsqueeze(0)
    found = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(found, values.contiguous())
    return torch.stack(found)


def smallest(number: int, device: torch.device) -> int:
    """The minimum of a number over all ranks."""
    if not several():
        return number
    shared = torch.tensor([number], device=device)
    dist.all_reduce(shared, op=dist.ReduceOp.MIN)
    return int(shared)


def largest(number: int, device: torch.device) -> int:
    """The maximum of a number over all ranks."""
    return -smallest(-number, device)


@contextmanager
def sampling_stream(model: Any, device: torch.device) -> Iterator[None]:
    """Seed the sampling in this block: equal within a tensor-parallel group, else per rank.

    A single process samples from the global generator. Launchers seed all ranks alike, so several
    ranks would sample the same noise. Therefore each rollout draws one number from the CPU
    generator, the first rank of each tensor-parallel group adds its rank and broadcasts the sum,
    and the group samples with that seed. On exit the generators are restored; only that one draw
    remains.

    Args:
        model: the actor, as wrapped by ColossalAI's plugin.
        device: the device that samples.
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
