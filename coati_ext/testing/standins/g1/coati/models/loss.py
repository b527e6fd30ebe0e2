"""Losses of language modelling, PPO and pairwise preference."""

from __future__ import annotations

from typing import Optional

import torch
import torch.nn as nn

from .utils import masked_mean


class GPTLMLoss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.loss = nn.CrossEntropyLoss()

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        predictions = logits[..., :-1, :]
        return self.loss(predictions.flatten(0, -2), labels[..., 1:].flatten())


class PolicyLoss(nn.Module):
    def __init__(self, clip_eps: float = 0.2) -> None:
        super().__init__()
        self.clip_eps = clip_eps

    def forward(
        self,
        log_probs: torch.Tensor,
        old_log_probs: torch.Tensor,
        advantages: torch.Tensor,
        action_mask: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        ratio = torch.exp(log_probs - old_log_probs)
        clipped = ratio.clamp(1 - self.clip_eps, 1 + self.clip_eps)
        loss = -torch.min(ratio * advantages, clipped * advantages)
        if action_mask is not None:
            loss = masked_mean(loss, action_mask)
        return loss.mean()


class ValueLoss(nn.Module):
    def __init__(self, clip_eps: float = 0.4) -> None:
        super().__init__()
        self.clip_eps = clip_eps

    def forward(
        self,
        values: torch.Tensor,
        old_values: torch.Tensor,
        reward: torch.Tensor,
        action_mask: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        near_old = old_values + (values - old_values).clamp(-self.clip_eps, self.clip_eps)
        worst = torch.max((near_old - reward) ** 2, (values - reward) ** 2)
        return 0.5 * worst.mean()


class LogSigLoss(nn.Module):
    """Non-finite once the sigmoid underflows (D26)."""

    def forward(self, chosen_reward: torch.Tensor, reject_reward: torch.Tensor) -> torch.Tensor:
        return -torch.log(torch.sigmoid(chosen_reward - reject_reward)).mean()


class LogExpLoss(nn.Module):
    """Infinite once the exponential overflows (D26)."""

    def forward(self, chosen_reward: torch.Tensor, reject_reward: torch.Tensor) -> torch.Tensor:
        return torch.log(1 + torch.exp(reject_reward - chosen_reward)).mean()
