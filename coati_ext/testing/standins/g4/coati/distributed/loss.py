from __future__ import annotations

from typing import Any, Optional, Tuple

import torch
from torch import nn

from coati.distributed.utils import masked_mean, masked_sum


class PolicyLoss(nn.Module):
    def __init__(
        self,
        clip_eps_low: float = 0.2,
        clip_eps_high: float = 0.2,
        beta: float = 0.01,
        loss_variation: str = "sample_level",
        adv: str = "GRPO",
    ) -> None:
        super().__init__()
        assert loss_variation in ("sample_level", "token_level"), loss_variation
        self.clip_eps_low = clip_eps_low
        self.clip_eps_high = clip_eps_high
        self.beta = beta
        self.loss_variation = loss_variation
        self.adv = adv

    def forward(
        self,
        log_probs: torch.Tensor,
        old_log_probs: torch.Tensor,
        advantages: torch.Tensor,
        per_token_kl: Any,
        action_mask: Optional[torch.Tensor] = None,
        loss_mask: Optional[torch.Tensor] = None,
        total_effective_tokens_in_batch: Any = None,
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """The loss, a scalar, and the largest ratio. A masked infinity of the KL is nan (D51)."""
        mask = torch.ones_like(log_probs) if action_mask is None else action_mask
        ratio = ((log_probs - old_log_probs.detach()) * mask).exp()
        held = ratio.clamp(1 - self.clip_eps_low, 1 + self.clip_eps_high)
        loss = -torch.min(ratio * advantages, held * advantages)
        if self.beta != 0:
            loss = loss + self.beta * per_token_kl
        if self.loss_variation == "sample_level":
            rows = masked_mean(loss, mask)
            rows = rows if loss_mask is None else rows * loss_mask
            return rows.mean(), ratio.max()
        rows = masked_sum(loss, mask)
        rows = rows if loss_mask is None else rows * loss_mask
        return rows.sum() / (total_effective_tokens_in_batch + 1e-8), ratio.max()
