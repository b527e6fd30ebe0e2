from __future__ import annotations

import csv
from datetime import datetime
from typing import Any, Callable, Tuple

import torch
import tqdm
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from .base import SLTrainer
from .strategies import Strategy
from .utils import is_rank_0


class RewardModelTrainer(SLTrainer):
    def __init__(
        self,
        model,
        strategy: Strategy,
        optim: Optimizer,
        lr_scheduler: Any,
        loss_fn: Callable,
        max_epochs: int = 1,
    ) -> None:
        super().__init__(strategy, max_epochs, model, optim)
        self.loss_fn = loss_fn
        self.scheduler = lr_scheduler

    def _score(self, batch: Tuple[torch.Tensor, ...]) -> Tuple[torch.Tensor, torch.Tensor]:
        """Rewards (B,) of chosen and of rejected, each in a forward of its own."""
        device = torch.cuda.current_device()
        ids, mask, other_ids, other_mask = (part.squeeze(1).to(device) for part in batch)
        chosen = self.model(ids, attention_mask=mask)
        return chosen, self.model(other_ids, attention_mask=other_mask)

    def _eval(self, epoch):
        if self.eval_dataloader is not None:
            self.model.eval()
            gap = right = seen = 0
            with torch.no_grad():
                for batch in self.eval_dataloader:
                    chosen, rejected = self._score(batch)
                    seen += len(chosen)
                    right += int((chosen > rejected).sum())
                    gap += (chosen - rejected).mean().item()
            self.dist = gap / len(self.eval_dataloader)
            self.acc = right / seen
            if is_rank_0():
                step = (epoch + 1) * len(self.train_dataloader)
                with open("log.csv", "a", newline="") as log:
                    writer = csv.writer(log, lineterminator="\n")
                    writer.writerow([step, self.loss.item(), self.dist, self.acc])

    def _train(self, epoch):
        self.model.train()
        bar = tqdm.tqdm(
            self.train_dataloader, desc=f"Train step of epoch {epoch}", disable=not is_rank_0()
        )
        for count, batch in enumerate(bar, start=1):
            self.loss = self.loss_fn(*self._score(batch))
            self.strategy.backward(self.loss, self.model, self.optimizer)
            self.strategy.optimizer_step(self.optimizer)
            self.optimizer.zero_grad()
            if count % 100 == 0:
                self.scheduler.step()

    def _before_fit(
        self,
        train_dataloader: DataLoader,
        valid_dataloader: DataLoader,
        eval_dataloader: DataLoader,
    ):
        super()._before_fit()
        self.datetime = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        self.train_dataloader = train_dataloader
        self.valid_dataloader = valid_dataloader
        self.eval_dataloader = eval_dataloader
