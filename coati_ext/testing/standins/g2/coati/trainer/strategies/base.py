"""Strategies of one process: the same calls as upstream's, without ColossalAI behind them."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, ContextManager

import torch
import torch.nn as nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader


class Strategy:
    def backward(
        self, loss: torch.Tensor, model: nn.Module, optimizer: Optimizer, **kwargs: Any
    ) -> None:
        loss.backward()

    def optimizer_step(self, optimizer: Optimizer, **kwargs: Any) -> None:
        optimizer.step()

    def setup_dataloader(self, data_buffer: Any, pin_memory: bool = False) -> DataLoader:
        raise NotImplementedError

    def model_init_context(self) -> ContextManager[None]:
        return nullcontext()

    def prepare(self, *boost_args: Any) -> Any:
        return boost_args[0] if len(boost_args) == 1 else list(boost_args)

    @staticmethod
    def unwrap_model(model: nn.Module) -> nn.Module:
        return model

    def save_model(
        self, model: nn.Module, path: str, only_rank0: bool = True, **kwargs: Any
    ) -> None:
        torch.save(model.state_dict(), path)

    def load_model(self, model: nn.Module, path: str, strict: bool = True) -> None:
        model.load_state_dict(torch.load(path), strict=strict)
