from __future__ import annotations

from typing import Any, Callable, Optional, Tuple

import torch
import tqdm
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from .base import SLTrainer
from .strategies import Strategy
from .utils import is_rank_0, open_writer


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
        self.num_train_step = 0

    def _score(self, batch: Tuple[torch.Tensor, ...]) -> Tuple[torch.Tensor, torch.Tensor]:
        """Rewards (B,) of chosen and of rejected, each in a forward of its own."""
        device = torch.cuda.current_device()
        ids, mask, other_ids, other_mask = (part.squeeze(1).to(device) for part in batch)
        chosen = self.model(ids, attention_mask=mask)
        return chosen, self.model(other_ids, attention_mask=other_mask)

    def _log(self, step: int, **scalars: float) -> None:
        if self.writer:
            for name, value in scalars.items():
                self.writer.add_scalar(name.replace("_", "/"), value, step)

    def _eval(self, epoch):
        if self.eval_dataloader is not None:
            self.model.eval()
            gap = right = seen = 0
            with torch.no_grad():
                for batch in self.eval_dataloader:
                    chosen, rejected = self._score(batch)
                    seen += len(chosen)
                    right += (chosen > rejected).sum().item()
                    gap += (chosen - rejected).mean().item()
            self.dist = gap / len(self.eval_dataloader)
            self.acc = right / seen
            self._log(epoch, eval_dist=self.dist, eval_acc=self.acc)

    def _train(self, epoch):
        self.model.train()
        title = f"Epoch {epoch + 1}/{self.max_epochs}"
        for batch in tqdm.tqdm(self.train_dataloader, desc=title, disable=not is_rank_0()):
            chosen, rejected = self._score(batch)
            loss = self.loss_fn(chosen, rejected)
            self.strategy.backward(loss, self.model, self.optimizer)
            self.strategy.optimizer_step(self.optimizer)
            self.optimizer.zero_grad()
            self._log(
                self.num_train_step,
                train_loss=loss.item(),
                train_lr=self.optimizer.param_groups[0]["lr"],
                train_dist=(chosen - rejected).mean().item(),
                train_acc=(chosen > rejected).float().mean().item(),
            )
            self.num_train_step += 1
            if self.num_train_step % 100 == 0:
                self.scheduler.step()

    def _before_fit(
        self,
        train_dataloader: DataLoader,
        eval_dataloader: DataLoader,
        log_dir: Optional[str] = None,
        use_wandb: bool = False,
    ):
        self.train_dataloader = train_dataloader
        self.eval_dataloader = eval_dataloader
        self.writer = open_writer(log_dir, "rm", use_wandb)
