from __future__ import annotations

import random
from typing import Any, List

import torch

from coati.experience_maker.base import Experience

from .base import ExperienceBuffer
from .utils import BufferItem, make_experience_batch, split_experience_batch


class NaiveExperienceBuffer(ExperienceBuffer):
    def __init__(self, sample_batch_size: int, limit: int = 0, cpu_offload: bool = True) -> None:
        super().__init__(sample_batch_size, limit)
        self.cpu_offload = cpu_offload
        self.target_device = torch.device(f"cuda:{torch.cuda.current_device()}")
        self.items: List[BufferItem] = []

    @torch.no_grad()
    def append(self, experience: Experience) -> None:
        if self.cpu_offload:
            experience.to_device(torch.device("cpu"))
        self.items += split_experience_batch(experience)
        if 0 < self.limit < len(self.items):
            self.items = self.items[-self.limit :]

    def clear(self) -> None:
        self.items.clear()

    @torch.no_grad()
    def sample(self) -> Experience:
        experience = make_experience_batch(random.sample(self.items, self.sample_batch_size))
        if self.cpu_offload:
            experience.to_device(self.target_device)
        return experience

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, idx: int) -> BufferItem:
        return self.items[idx]

    def collate_fn(self, batch: Any) -> Experience:
        return make_experience_batch(batch)
