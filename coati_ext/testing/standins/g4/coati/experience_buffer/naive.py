from __future__ import annotations

import logging
import random
from typing import Any, List

import torch

from coati.experience_maker.base import Experience

from .base import ExperienceBuffer
from .utils import BufferItem, make_experience_batch, split_experience_batch

logger = logging.getLogger(__name__)


class NaiveExperienceBuffer(ExperienceBuffer):
    def __init__(self, sample_batch_size: int, limit: int = 0, cpu_offload: bool = True) -> None:
        super().__init__(sample_batch_size, limit)
        self.cpu_offload = cpu_offload
        self.target_device = torch.device(f"cuda:{torch.cuda.current_device()}")
        self.items: List[BufferItem] = []
        self.rng_sequence: List[int] = []
        self.ptr = 0

    @torch.no_grad()
    def append(self, experience: Experience) -> None:
        if self.cpu_offload:
            experience.to_device(torch.device("cpu"))
        self.items += split_experience_batch(experience)
        if 0 < self.limit < len(self.items):
            logger.warning(f"removing {len(self.items) - self.limit} samples: the buffer is full")
            self.items = self.items[-self.limit :]
        self.rng_sequence = list(range(len(self.items)))
        random.shuffle(self.rng_sequence)
        self.ptr = 0

    def clear(self) -> None:
        self.items.clear()

    @torch.no_grad()
    def sample(self) -> Experience:
        items = []
        for _ in range(self.sample_batch_size):
            # Stepping before reading puts the first of each permutation last (D31).
            self.ptr = (self.ptr + 1) % len(self.items)
            items.append(self.items[self.rng_sequence[self.ptr]])
        experience = make_experience_batch(items)
        if self.cpu_offload:
            experience.to_device(self.target_device)
        return experience

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, idx: int) -> BufferItem:
        return self.items[idx]

    def collate_fn(self, batch: Any) -> Experience:
        return make_experience_batch(batch)
