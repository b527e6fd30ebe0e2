from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Optional

from coati.distributed.actors import remote
from coati.distributed.steps import accumulate, log_update
from coati.distributed.zero_bubble.consumer import BaseConsumer


@remote
class GRPOConsumer(BaseConsumer):
    """Only what a step needs; upstream's constructor is that of the other package."""

    def step(self, pbar: Any, **kwargs) -> Optional[float]:
        """Train on a minibatch of groups; at the end of an update its loss, else None."""
        policy_model, optimizer = self.policy_model, self.optimizer
        loss_fn = self.policy_loss_fn
        groups = kwargs["reward"].view(-1, self.num_generations)
        deviation = groups.std(dim=1, keepdim=True) + 1e-4
        advantages = ((groups - groups.mean(dim=1, keepdim=True)) / deviation).view(-1, 1)
        self.effective_prompt_count += groups.size(0) * self.dp_size
        need_update = self.effective_prompt_count >= self.batch_size * self.dp_size
        free = need_update or self.booster.plugin.zero_stage == 2
        with nullcontext() if free else self.booster.no_sync(policy_model, optimizer):
            accumulate(self, loss_fn, advantages, pbar, kwargs)
        if not need_update:
            return None
        optimizer.step()
        optimizer.zero_grad()
        self.global_step += 1
        self.lr_scheduler.step()
        return log_update(self, kwargs)
