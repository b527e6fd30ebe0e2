from __future__ import annotations

from typing import Any, Callable, Optional

import torch
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from coati.models import LogSigLoss
from coati.utils import AccumulativeMeanMeter

from .base import SLTrainer
from .utils import get_current_device, open_writer, to_device

_LOGGED = {
    "loss": "loss",
    "reward_chosen": "chosen_rewards",
    "reward_reject": "rejected_rewards",
    "acc": "accuracy",
}


class RewardModelTrainer(SLTrainer):
    """Leaving `loss_fn` out is a TypeError: `LogSigLoss` takes no `beta` (D27)."""

    def __init__(
        self,
        model: Any,
        booster: Any,
        optimizer: Optimizer,
        plugin: Any,
        lr_scheduler: Any,
        tokenizer: PreTrainedTokenizerBase,
        loss_fn: Optional[Callable] = None,
        max_epochs: int = 1,
        beta: float = 0.1,
        accumulation_steps: int = 1,
        start_epoch: int = 0,
        save_interval: int = 0,
        save_dir: Optional[str] = None,
        coordinator: Any = None,
    ) -> None:
        super().__init__(booster, max_epochs, model, optimizer, plugin, start_epoch=start_epoch)
        self.actor_scheduler = lr_scheduler
        self.tokenizer = tokenizer
        self.loss_fn = LogSigLoss(beta=beta) if loss_fn is None else loss_fn
        self.save_interval = save_interval
        self.coordinator = coordinator
        self.save_dir = save_dir
        self.num_train_step = 0
        self.accumulation_steps = accumulation_steps
        self.device = get_current_device()
        self.accumulative_meter = AccumulativeMeanMeter()

    def _before_fit(
        self,
        train_preference_dataloader: DataLoader = None,
        eval_preference_dataloader: DataLoader = None,
        log_dir: Optional[str] = None,
        use_wandb: bool = False,
    ):
        self.train_dataloader = train_preference_dataloader
        self.eval_dataloader = eval_preference_dataloader
        self.writer = open_writer(log_dir, "rm", use_wandb)

    def _train(self, epoch):
        self.model.train()
        for i, batch in enumerate(self._batches(self.train_dataloader, epoch)):
            batch = to_device(batch, self.device)
            rows = batch["chosen_input_ids"].size(0)
            both = {
                name: torch.cat([batch[f"chosen_{name}"], batch[f"reject_{name}"]])
                for name in ("input_ids", "attention_mask")
            }
            reward = self.model(both["input_ids"], attention_mask=both["attention_mask"])
            chosen, rejected = reward[:rows], reward[rows:]
            loss = self.loss_fn(chosen, rejected).mean()
            self.booster.backward(loss=loss, optimizer=self.optimizer)
            self._meter(
                accuracy=(chosen > rejected).float(),
                loss=loss,
                chosen_rewards=chosen,
                rejected_rewards=rejected,
            )
            if (i + 1) % self.accumulation_steps == 0:
                self.optimizer.step()
                self.optimizer.zero_grad()
                self.actor_scheduler.step()
                self.num_train_step += 1
                self._log(self.num_train_step, _LOGGED)
                if self.save_interval > 0 and (self.num_train_step + 1) % self.save_interval == 0:
                    self._save(epoch, i + 1, rows)

    def _eval(self, epoch):
        if self.eval_dataloader is None:
            self.coordinator.print_on_master("No eval dataloader is provided, skip evaluation")
            return
        self.model.eval()
        with torch.no_grad():
            for batch in self._batches(self.eval_dataloader, epoch):
                batch = to_device(batch, self.device)
                chosen, rejected = (
                    self.model(batch[f"{a}_input_ids"], attention_mask=batch[f"{a}_attention_mask"])
                    for a in ("chosen", "reject")
                )
                loss = self.loss_fn(chosen, rejected).mean()
                self._meter(loss=loss, chosen_rewards=chosen, rejected_rewards=rejected)
        self._report(epoch, "loss", "chosen_rewards", "rejected_rewards")
