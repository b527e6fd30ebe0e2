from __future__ import annotations

from typing import Any, Dict, Optional, Tuple

import torch
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from coati.models.loss import OddsRatioLoss
from coati.models.utils import calc_masked_log_probs
from coati.utils import AccumulativeMeanMeter

from .base import SLTrainer
from .utils import get_current_device, open_writer, to_device

_NAMES = ("loss", "chosen_rewards", "rejected_rewards", "log_odds_ratio", "accuracy")


class ORPOTrainer(SLTrainer):
    def __init__(
        self,
        actor: Any,
        booster: Any,
        actor_optim: Optimizer,
        plugin: Any,
        actor_lr_scheduler: Any,
        tokenizer: PreTrainedTokenizerBase,
        max_epochs: int = 1,
        lam: float = 0.1,
        apply_loss_mask: bool = True,
        accumulation_steps: int = 1,
        start_epoch: int = 0,
        save_interval: int = 0,
        save_dir: Optional[str] = None,
        coordinator: Any = None,
    ) -> None:
        super().__init__(booster, max_epochs, actor, actor_optim, plugin, start_epoch=start_epoch)
        self.actor_scheduler = actor_lr_scheduler
        self.tokenizer = tokenizer
        self.odds_ratio_loss_fn = OddsRatioLoss()
        self.save_interval = save_interval
        self.coordinator = coordinator
        self.save_dir = save_dir
        self.num_train_step = 0
        self.lam = lam
        self.apply_loss_mask = apply_loss_mask
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
        self.writer = open_writer(log_dir, "orpo", use_wandb)

    def _losses(self, batch: Dict[str, torch.Tensor]) -> Tuple[torch.Tensor, ...]:
        """Loss, mean log-probability of either answer, and the log odds ratio: all scalars."""
        if not self.apply_loss_mask:
            batch["chosen_loss_mask"].fill_(1.0)
            batch["reject_loss_mask"].fill_(1.0)
        chosen_ids, reject_ids = batch["chosen_input_ids"], batch["reject_input_ids"]
        chosen_mask = batch["chosen_loss_mask"][:, 1:]
        reject_mask = batch["reject_loss_mask"][:, 1:]
        # The labels are the chosen rows whole: prompt and pads count in the likelihood too.
        output = self.model(
            input_ids=torch.cat([chosen_ids, reject_ids]),
            attention_mask=torch.cat(
                [batch["chosen_attention_mask"], batch["reject_attention_mask"]]
            ),
            labels=torch.cat([chosen_ids, torch.full_like(reject_ids, -100)]),
        )
        chosen_logits, reject_logits = output["logits"].float().chunk(2)
        chosen = calc_masked_log_probs(chosen_logits, chosen_ids, chosen_mask)
        reject = calc_masked_log_probs(reject_logits, reject_ids, reject_mask)
        ratio_loss, log_odds = self.odds_ratio_loss_fn(chosen, reject, chosen_mask, reject_mask)
        return (
            output["loss"] - ratio_loss * self.lam,
            chosen.sum() / chosen_mask.sum(),
            reject.sum() / reject_mask.sum(),
            log_odds,
        )

    def _add_to_meter(
        self, loss: Any, chosen: torch.Tensor, rejected: torch.Tensor, log_odds: torch.Tensor
    ) -> None:
        accuracy = (log_odds > 0).float().sum() / (log_odds != 0).sum()
        self._meter(loss=loss, chosen_rewards=chosen, rejected_rewards=rejected, accuracy=accuracy)
        self.accumulative_meter.add("log_odds_ratio", log_odds.to(torch.float16).mean().item())

    def _train(self, epoch: int):
        self.model.train()
        self.accumulative_meter.reset()
        for i, batch in enumerate(self._batches(self.train_dataloader, epoch)):
            batch = to_device(batch, self.device)
            losses = self._losses(batch)
            self.booster.backward(loss=losses[0], optimizer=self.optimizer)
            if self.num_train_step % self.accumulation_steps == self.accumulation_steps - 1:
                self.optimizer.step()
                self.optimizer.zero_grad()
                self.actor_scheduler.step()
            self._add_to_meter(*losses)
            if i % self.accumulation_steps == self.accumulation_steps - 1:
                self.num_train_step += 1
                self._log(self.num_train_step, dict(zip(_NAMES, _NAMES)))
                if (
                    self.save_dir is not None
                    and (self.num_train_step + 1) % self.save_interval == 0
                ):
                    self._save(epoch, i + 1, len(batch["chosen_input_ids"]))

    def _eval(self, epoch: int):
        if self.eval_dataloader is None:
            self.coordinator.print_on_master("No eval dataloader is provided, skip evaluation")
            return
        self.model.eval()
        self.accumulative_meter.reset()
        with torch.no_grad():
            for batch in self._batches(self.eval_dataloader, epoch):
                self._add_to_meter(*self._losses(to_device(batch, self.device)))
        self._report(epoch, *_NAMES)
