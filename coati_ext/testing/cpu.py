"""Run coati's trainers in one process, without CUDA and without ColossalAI's plugins.

with cpu_only():
    trainer = RewardModelTrainer(model, LocalStrategy(), ...)              # G1, G2
    trainer = RewardModelTrainer(model, booster=LocalBooster(), ...)       # G3, G4
"""

from __future__ import annotations

import logging
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ContextManager, Iterator, Optional, Tuple
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

logger = logging.getLogger(__name__)


class _Cpu(str):
    """Replaces `torch.cuda.current_device()` on a machine without CUDA.

    As a device it is "cpu", but it formats as "0", because coati also writes
    `torch.device(f"cuda:{torch.cuda.current_device()}")`.
    """

    def __format__(self, spec: str) -> str:
        return "0"


@contextmanager
def no_cuda() -> Iterator[None]:
    """Let CUDA look absent: `torch.cuda.current_device()` is the CPU, `empty_cache()` does nothing.

    Undone on exit.
    """
    with ExitStack() as stack:
        for name, stub in (
            ("current_device", lambda: _Cpu("cpu")),
            ("empty_cache", lambda: None),
            ("is_available", lambda: False),
        ):
            stack.enter_context(mock.patch.object(torch.cuda, name, stub))
        yield


@contextmanager
def cpu_only() -> Iterator[None]:
    """Let coati's trainers and datasets run on the CPU, and undo everything on exit.

    As :func:`no_cuda`; and if there is no process group, a gloo group of one process is created.
    """
    with ExitStack() as stack:
        stack.enter_context(no_cuda())
        if dist.is_available() and not dist.is_initialized():
            folder = stack.enter_context(TemporaryDirectory())
            meeting = (Path(folder) / "group").as_uri()
            dist.init_process_group("gloo", init_method=meeting, rank=0, world_size=1)
            stack.callback(dist.destroy_process_group)
        yield


class LocalBooster:
    """Stands in for a G3 or G4 `Booster` without a plugin."""

    plugin: Any = None

    def backward(self, loss: torch.Tensor, optimizer: Optimizer) -> None:
        """Accumulate gradients of the scalar `loss`."""
        loss.backward()  # type: ignore[no-untyped-call]

    def boost(
        self,
        model: nn.Module,
        optimizer: Optional[Optimizer] = None,
        criterion: Any = None,
        dataloader: Any = None,
        lr_scheduler: Any = None,
    ) -> Tuple[Any, ...]:
        """Return the five arguments as they are."""
        return model, optimizer, criterion, dataloader, lr_scheduler


class LocalStrategy:
    """Stands in for a G1 or G2 `Strategy`: everything happens in this process.

    Args:
        booster: wraps models and runs the backward pass; by default models are not wrapped.
    """

    def __init__(self, booster: Any = None) -> None:
        self.booster = LocalBooster() if booster is None else booster
        self.plugin = self.booster.plugin

    def backward(
        self, loss: torch.Tensor, model: nn.Module, optimizer: Optimizer, **kwargs: Any
    ) -> None:
        """Accumulate gradients of the scalar `loss`."""
        self.booster.backward(loss, optimizer)

    def optimizer_step(self, optimizer: Optimizer, **kwargs: Any) -> None:
        """Step the optimizer."""
        optimizer.step()

    def setup_dataloader(self, data_buffer: Any, pin_memory: bool = False) -> DataLoader[Any]:
        """Return a loader of full batches of a coati `ExperienceBuffer`, without pinned memory."""
        return DataLoader(
            data_buffer,
            batch_size=data_buffer.sample_batch_size,
            shuffle=True,
            drop_last=True,
            collate_fn=data_buffer.collate_fn,
        )

    def model_init_context(self) -> ContextManager[None]:
        """Return a context that does nothing."""
        return nullcontext()

    def prepare(self, *boost_args: Any) -> Any:
        """Boost models and (model, optimizer) pairs; return one result, or a list of several."""
        boosted = [
            self._boosted(*it) if isinstance(it, tuple) else self._boosted(it)[0]
            for it in boost_args
        ]
        return boosted[0] if len(boosted) == 1 else boosted

    def _boosted(self, *model_and_optimizer: Any) -> Tuple[Any, ...]:
        return tuple(self.booster.boost(*model_and_optimizer)[:2])

    def unwrap_model(self, model: Any) -> nn.Module:
        """Return the model without the booster's wrapper."""
        unwrapped: nn.Module = model.unwrap() if hasattr(model, "unwrap") else model
        return unwrapped


class LocalCoordinator:
    """Stands in for ColossalAI's `DistCoordinator`: this process is the master."""

    def print_on_master(self, msg: str, process_group: Any = None) -> None:
        """Log instead of printing."""
        logger.info(msg.strip())

    def is_master(self, process_group: Any = None) -> bool:
        """Return True."""
        return True
