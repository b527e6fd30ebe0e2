from __future__ import annotations

from typing import Any, Dict, List, Optional, Tuple

import torch
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from coati.models.loss import DpoLoss
from coati.models.utils import calc_masked_log_probs
from coati.utils import AccumulativeMeanMeter

from .base import SLTrainer
from .utils import get_current_device, open_writer, to_device

_NAMES = ("loss", "chosen_rewards", "rejected_rewards", "accuracy")


class DPOTrainer(SLTrainer):
    def __init__(
        self,
        actor: Any,
        ref_model: Any,
        booster: Any,
        actor_optim: Optimizer,
        plugin: Any,
        actor_lr_scheduler: Any,
        tokenizer: PreTrainedTokenizerBase,
        max_epochs: int = 1,
        beta: float = 0.1,
        gamma: float = 0.0,
        length_normalization: bool = False,
        apply_loss_mask: bool = True,
        accumulation_steps: int = 1,
        start_epoch: int = 0,
        save_interval: int = 0,
        save_dir: Optional[str] = None,
        coordinator: Any = None,
    ) -> None:
        super().__init__(booster, max_epochs, actor, actor_optim, plugin, start_epoch=start_epoch)
        self.ref_model = ref_model
        self.actor_scheduler = actor_lr_scheduler
        self.tokenizer = tokenizer
        self.actor_loss_fn = DpoLoss(beta, gamma)
        self.apply_loss_mask = apply_loss_mask
        self.save_interval = save_interval
        self.coordinator = coordinator
        self.save_dir = save_dir
        self.num_train_step = 0
        self.accumulation_steps = accumulation_steps
        self.device = get_current_device()
        self.accumulative_meter = AccumulativeMeanMeter()
        self.length_normalization = length_normalization

    def _before_fit(
        self,
        train_preference_dataloader: DataLoader = None,
        eval_preference_dataloader: DataLoader = None,
        log_dir: Optional[str] = None,
        use_wandb: bool = False,
    ):
        self.train_dataloader = train_preference_dataloader
        self.eval_dataloader = eval_preference_dataloader
        self.writer = open_writer(log_dir, "dpo", use_wandb)

    def _log_probs(self, model: Any, batch: Dict[str, torch.Tensor]) -> List[torch.Tensor]:
        """Masked log-probabilities (B, S - 1) of the chosen and of the rejected answers."""
        ids = torch.cat([batch["chosen_input_ids"], batch["reject_input_ids"]])
        mask = torch.cat([batch["chosen_attention_mask"], batch["reject_attention_mask"]])
        halves = model(input_ids=ids, attention_mask=mask)["logits"].chunk(2)
        return [
            calc_masked_log_probs(
                logits,
                batch[f"{answer}_input_ids"],
                batch[f"{answer}_loss_mask"][:, 1:],
                self.length_normalization,
            )
            for answer, logits in zip(("chosen", "reject"), halves)
        ]

    def _losses(self, batch: Dict[str, torch.Tensor]) -> Tuple[torch.Tensor, ...]:
        if not self.apply_loss_mask:
            batch["chosen_loss_mask"].fill_(1.0)
            batch["reject_loss_mask"].fill_(1.0)
        actor = self._log_probs(self.model, batch)
        reference: List[Optional[torch.Tensor]] = [None, None]
        if self.ref_model is not None:
            self.ref_model.eval()
            with torch.no_grad():
                reference = self._log_probs(self.ref_model, batch)
        masks = (batch["chosen_loss_mask"][:, 1:], batch["reject_loss_mask"][:, 1:])
        losses, chosen, rejected = self.actor_loss_fn(*actor, *reference, *masks)
        return losses.mean(), chosen, rejected

    def _add_to_meter(self, loss: Any, chosen: torch.Tensor, rejected: torch.Tensor) -> None:
        accuracy = (chosen > rejected).float().mean()
        self._meter(loss=loss, chosen_rewards=chosen, rejected_rewards=rejected, accuracy=accuracy)

    def _train(self, epoch: int):
        self.model.train()
        self.accumulative_meter.reset()
        for i, batch in enumerate(self._batches(self.train_dataloader, epoch)):
            batch = to_device(batch, self.device)
            loss, chosen, rejected = self._losses(batch)
            self.booster.backward(loss=loss, optimizer=self.optimizer)
            if self.num_train_step % self.accumulation_steps == self.accumulation_steps - 1:
                self.optimizer.step()
                self.optimizer.zero_grad()
                self.actor_scheduler.step()
            self._add_to_meter(loss, chosen, rejected)
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
