from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from coati.experience_maker.base import Experience


class ExperienceBuffer(ABC):
    def __init__(self, sample_batch_size: int, limit: int = 0) -> None:
        super().__init__()
        self.sample_batch_size = sample_batch_size
        self.limit = limit  # not positive: unlimited

    @abstractmethod
    def append(self, experience: Experience) -> None: ...

    @abstractmethod
    def clear(self) -> None: ...

    @abstractmethod
    def sample(self) -> Experience: ...

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, idx: int) -> Any: ...

    @abstractmethod
    def collate_fn(self, batch: Any) -> Experience: ...
