from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader


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
