from __future__ import annotations

import os
from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List

import torch
import torch.nn as nn
import tqdm
from torch.optim import Optimizer

from coati.experience_buffer import NaiveExperienceBuffer
from coati.experience_maker import Experience
from coati.utils import save_checkpoint

from .utils import all_reduce_mean, is_rank_0


def _bar(*span: int, title: str) -> tqdm.tqdm:
    return tqdm.trange(*span, desc=title, disable=not is_rank_0())


class SLTrainer(ABC):
    def __init__(
        self,
        booster: Any,
        max_epochs: int,
        model: nn.Module,
        optimizer: Optimizer,
        plugin: Any,
        start_epoch: int = 0,
    ) -> None:
        super().__init__()
        self.booster = booster
        self.max_epochs = max_epochs
        self.model = model
        self.optimizer = optimizer
        self.plugin = plugin
        self.start_epoch = start_epoch

    @abstractmethod
    def _train(self, epoch): ...

    @abstractmethod
    def _eval(self, epoch): ...

    @abstractmethod
    def _before_fit(self): ...

    def fit(self, *args: Any, **kwargs: Any) -> None:
        self._before_fit(*args, **kwargs)
        for epoch in _bar(self.start_epoch, self.max_epochs, title="Epochs"):
            self._train(epoch)
            self._eval(epoch)

    # The rest is shared by the trainers on preference pairs.

    def _batches(self, loader: Any, epoch: int) -> tqdm.tqdm:
        title = f"Epoch {epoch + 1}/{self.max_epochs}"
        return tqdm.tqdm(loader, desc=title, disable=not is_rank_0())

    def _meter(self, **tensors: torch.Tensor) -> None:
        """Means over processes, in half precision; the tensors are overwritten."""
        for name, tensor in tensors.items():
            mean = all_reduce_mean(tensor=tensor.detach()).to(torch.float16).mean()
            self.accumulative_meter.add(name, mean.item())

    def _log(self, step: float, names: Dict[str, str]) -> None:
        """Write the meter's means to TensorBoard and start new ones."""
        if self.writer and is_rank_0():
            mean = self.accumulative_meter.get
            self.writer.add_scalar("train/lr", self.optimizer.param_groups[0]["lr"], step)
            for shown, name in names.items():
                self.writer.add_scalar(f"train/{shown}", mean(name), step)
            gap = mean("chosen_rewards") - mean("rejected_rewards")
            self.writer.add_scalar("train/dist", gap, step)
        self.accumulative_meter.reset()

    def _save(self, epoch: int, step: int, batch_size: int) -> None:
        self.coordinator.print_on_master("\nStart saving model checkpoint with running states")
        save_checkpoint(
            save_dir=self.save_dir,
            booster=self.booster,
            model=self.model,
            optimizer=self.optimizer,
            lr_scheduler=self.actor_scheduler,
            epoch=epoch,
            step=step,
            batch_size=batch_size,
            coordinator=self.coordinator,
        )
        self.coordinator.print_on_master(f"Saved checkpoint at folder {self.save_dir}")

    def _report(self, epoch: int, *names: str) -> None:
        mean = self.accumulative_meter.get
        lines = [f"{name}: {mean(name)}" for name in names]
        message = "\n".join(["Evaluation Result:", *lines, ""])
        self.coordinator.print_on_master(message)
        os.makedirs(self.save_dir, exist_ok=True)
        with open(os.path.join(self.save_dir, f"eval_result_epoch{epoch}.txt"), "w") as stream:
            stream.write(message)


class OLTrainer(ABC):
    def __init__(
        self,
        actor_booster: Any,
        critic_booster: Any,
        data_buffer: NaiveExperienceBuffer,
        sample_buffer: bool,
        dataloader_pin_memory: bool,
        callbacks: List[Callable] = [],  # noqa: B006
    ) -> None:
        super().__init__()
        self.actor_booster = actor_booster
        self.critic_booster = critic_booster
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

    def _on_learn_batch_end(self, experience: Experience) -> None:
        self._tell("on_learn_batch_end", experience)

    @abstractmethod
    def _make_experience(self, collect_step: int): ...

    @abstractmethod
    def _learn(self, update_step: int): ...

    @abstractmethod
    def _setup_update_phrase_dataload(self): ...

    @abstractmethod
    def _save_checkpoint(self, episode: int = 0): ...

    def _collect_phase(self, collect_step: int) -> None:
        self._tell("on_make_experience_start")
        experience = self._make_experience(collect_step)
        self._tell("on_make_experience_end", experience)
        self.data_buffer.append(experience)

    def _update_phase(self, update_step: int) -> None:
        self._tell("on_learn_epoch_start", update_step)
        self._learn(update_step)
        self._tell("on_learn_epoch_end", update_step)

    def _before_fit(self, *args: Any, **kwargs: Any):
        raise NotImplementedError

    def fit(
        self,
        num_episodes: int,
        num_collect_steps: int,
        num_update_steps: int,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        self._before_fit(*args, **kwargs)
        with self._between("on_fit_start", "on_fit_end"):
            for episode in _bar(num_episodes, title="Episodes"):
                with self._between("on_episode_start", "on_episode_end", episode):
                    for step in _bar(num_collect_steps, title="Collect steps"):
                        self._collect_phase(step)
                    if not self.sample_buffer:
                        self._setup_update_phrase_dataload()
                    for step in _bar(num_update_steps, title="Update steps"):
                        self._update_phase(step)
                    self.data_buffer.clear()
                if self.save_interval > 0 and (episode + 1) % self.save_interval == 0:
                    self._save_checkpoint(episode + 1)
