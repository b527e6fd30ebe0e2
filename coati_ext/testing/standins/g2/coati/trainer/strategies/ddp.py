from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from .base import Strategy


class DDPStrategy(Strategy):
    def setup_dataloader(self, data_buffer: Any, pin_memory: bool = False) -> DataLoader:
        """The sampler gives a rank its share of what is the rank's own already (D41)."""
        joined = dist.is_initialized()
        return DataLoader(
            data_buffer,
            batch_size=data_buffer.sample_batch_size,
            sampler=DistributedSampler(
                data_buffer,
                num_replicas=dist.get_world_size() if joined else 1,
                rank=dist.get_rank() if joined else 0,
                shuffle=True,
            ),
            drop_last=True,
            pin_memory=pin_memory,
            collate_fn=data_buffer.collate_fn,
        )
