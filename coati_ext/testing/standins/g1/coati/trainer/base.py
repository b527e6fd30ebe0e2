from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import Any, Iterator, List

import torch.nn as nn
import tqdm
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from coati.experience_buffer import NaiveExperienceBuffer
from coati.experience_maker import Experience

from .callbacks import Callback
from .strategies import Strategy
from .utils import CycledDataLoader, is_rank_0


def _bar(count: int, title: str, hidden: bool = False) -> tqdm.tqdm:
    return tqdm.trange(count, desc=title, disable=hidden or not is_rank_0())


class SLTrainer(ABC):
    def __init__(
        self, strategy: Strategy, max_epochs: int, model: nn.Module, optimizer: Optimizer
    ) -> None:
        super().__init__()
        self.strategy = strategy
        self.max_epochs = max_epochs
        self.model = model
        self.optimizer = optimizer

    @abstractmethod
    def _train(self, epoch): ...

    @abstractmethod
    def _eval(self, epoch): ...

    def _before_fit(self):
        self.no_epoch_bar = False

    def fit(self, *args: Any, **kwargs: Any) -> None:
        self._before_fit(*args, **kwargs)
        for epoch in _bar(self.max_epochs, "Epochs", self.no_epoch_bar):
            self._train(epoch)
            self._eval(epoch)


class OnPolicyTrainer(ABC):
    def __init__(
        self,
        strategy: Strategy,
        data_buffer: NaiveExperienceBuffer,
        sample_buffer: bool,
        dataloader_pin_memory: bool,
        callbacks: List[Callback] = [],  # noqa: B006
    ) -> None:
        super().__init__()
        self.strategy = strategy
        self.data_buffer = data_buffer
        self.sample_buffer = sample_buffer
        self.dataloader_pin_memory = dataloader_pin_memory
        self.callbacks = callbacks

    def _tell(self, event: str, *args: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(*args)

    @contextmanager
    def _between(self, first: str, last: str, *args: Any) -> Iterator[None]:
        self._tell(first, *args)
        try:
            yield
        finally:
            self._tell(last, *args)

    def _on_learn_batch_start(self) -> None:
        self._tell("on_learn_batch_start")

    def _on_learn_batch_end(self, metrics: dict, experience: Experience) -> None:
        self._tell("on_learn_batch_end", metrics, experience)

    @abstractmethod
    def _make_experience(self, collect_step: int): ...

    @abstractmethod
    def _learn(self, update_step: int): ...

    def _collect_phase(self, collect_step: int) -> None:
        self._tell("on_make_experience_start")
        experience = self._make_experience(collect_step)
        self._tell("on_make_experience_end", experience)
        self.data_buffer.append(experience)

    def _update_phase(self, update_step: int) -> None:
        self._tell("on_learn_epoch_start", update_step)
        self._learn(update_step)
        self._tell("on_learn_epoch_end", update_step)

    def fit(
        self,
        prompt_dataloader: DataLoader,
        pretrain_dataloader: DataLoader,
        num_episodes: int,
        num_collect_steps: int,
        num_update_steps: int,
    ) -> None:
        self.prompt_dataloader = CycledDataLoader(prompt_dataloader)
        self.pretrain_dataloader = CycledDataLoader(pretrain_dataloader)
        with self._between("on_fit_start", "on_fit_end"):
            for episode in _bar(num_episodes, "Episodes"):
                with self._between("on_episode_start", "on_episode_end", episode):
                    for step in _bar(num_collect_steps, "Collect steps"):
                        self._collect_phase(step)
                    if not self.sample_buffer:
                        self.dataloader = self.strategy.setup_dataloader(
                            self.data_buffer, self.dataloader_pin_memory
                        )
                    for step in _bar(num_update_steps, "Update steps"):
                        self._update_phase(step)
                    self.data_buffer.clear()
