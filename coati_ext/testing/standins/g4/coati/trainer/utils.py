from __future__ import annotations

import os
import time
from typing import Any, Optional

import torch
import torch.distributed as dist
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader


class AnnealingScheduler:
    """`start` for the warm-up steps, then the straight line from step 0 to `end`."""

    def __init__(self, start, end, warmup_steps=100, annealing_step=2000) -> None:
        self.start = start
        self.end = end
        self.warmup_steps = warmup_steps
        self.annealing_step = annealing_step
        self.step = 0

    def get_temperature(self):
        if self.step <= self.warmup_steps:
            return self.start
        if self.step >= self.annealing_step:
            return self.end
        return self.start - (self.step / self.annealing_step) * (self.start - self.end)

    def step_forward(self) -> None:
        self.step += 1


class CycledDataLoader:
    """A data loader that starts again when it runs out."""

    def __init__(self, dataloader: DataLoader) -> None:
        self.dataloader = dataloader
        self.count = 0
        self.dataloader_iter = None

    def next(self) -> Any:
        if self.dataloader_iter is None:
            self.dataloader_iter = iter(self.dataloader)
        self.count += 1
        try:
            return next(self.dataloader_iter)
        except StopIteration:
            self.count = 0
            self.dataloader_iter = iter(self.dataloader)
            return next(self.dataloader_iter)


def is_rank_0() -> bool:
    return dist.get_rank() == 0 if dist.is_initialized() else True


def to_device(x: Any, device: torch.device) -> Any:
    return tree_map(lambda leaf: leaf.to(device) if torch.is_tensor(leaf) else leaf, x)


def all_reduce_mean(tensor: torch.Tensor, plugin: Any = None) -> torch.Tensor:
    """Mean over the processes, in place; needs a process group even for one process."""
    group = None if plugin is None else plugin.dp_group
    dist.all_reduce(tensor=tensor, op=dist.ReduceOp.SUM, group=group)
    return tensor.div_(dist.get_world_size() if plugin is None else plugin.dp_size)


def all_reduce_sum(tensor: torch.Tensor, plugin: Any = None) -> torch.Tensor:
    group = None if plugin is None else plugin.dp_group
    dist.all_reduce(tensor=tensor, op=dist.ReduceOp.SUM, group=group)
    return tensor


def get_current_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device(f"cuda:{torch.cuda.current_device()}")
    return torch.device("cpu")


def open_writer(log_dir: Optional[str], topic: str, use_wandb: bool) -> Any:
    """A TensorBoard writer in a dated folder under `log_dir`, or None without one."""
    if not is_rank_0():
        return None
    if use_wandb:
        assert log_dir is not None, "use_wandb needs a log_dir"
        import wandb

        wandb.init(project=f"Coati-{topic}", sync_tensorboard=True)
    if log_dir is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(log_dir=os.path.join(log_dir, topic, time.strftime("%Y-%m-%d_%H:%M:%S")))
