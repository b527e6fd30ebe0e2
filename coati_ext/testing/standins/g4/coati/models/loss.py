"""Losses of language modelling, PPO, pairwise preference, DPO and ORPO."""

from __future__ import annotations

from typing import Optional, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F

from .utils import masked_mean


class GPTLMLoss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.loss = nn.CrossEntropyLoss()

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        predictions = logits[..., :-1, :]
        return self.loss(predictions.flatten(0, -2), labels[..., 1:].flatten())


class PolicyLoss(nn.Module):
    """Loss, whether to skip the step, and the largest ratio.

    The clamp comes after exp(), so the gradient of a huge log-ratio is not finite (D28).
    """

    def __init__(self, clip_eps: float = 0.2, skip_threshold: float = 20.0) -> None:
        super().__init__()
        self.clip_eps = clip_eps
        self.skip_threshold = skip_threshold

    def forward(
        self,
        log_probs: torch.Tensor,
        old_log_probs: torch.Tensor,
        advantages: torch.Tensor,
        action_mask: Optional[torch.Tensor] = None,
    ) -> Tuple[torch.Tensor, bool, torch.Tensor]:
        log_ratio = log_probs - old_log_probs
        if action_mask is not None:
            log_ratio = log_ratio * action_mask
        raw = log_ratio.exp()
        ratio = raw.clamp(0.0, 10.0)
        clipped = ratio.clamp(1 - self.clip_eps, 1 + self.clip_eps)
        loss = -torch.min(ratio * advantages, clipped * advantages)
        per_row = loss.mean(dim=1) if action_mask is None else masked_mean(loss, action_mask)
        return per_row.mean(), bool(raw.mean() > self.skip_threshold), raw.max()


class ValueLoss(nn.Module):
    def __init__(self, clip_eps: float = 0.2) -> None:
        super().__init__()
        self.clip_eps = clip_eps

    def forward(
        self,
        values: torch.Tensor,
        old_values: torch.Tensor,
        advantage: torch.Tensor,
        action_mask: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        returns = advantage + old_values
        near_old = old_values + (values - old_values).clamp(-self.clip_eps, self.clip_eps)
        worst = torch.max((near_old - returns) ** 2, (values - returns) ** 2)
        if action_mask is None:
            return 0.5 * worst.mean()
        return 0.5 * torch.sum(worst / torch.sum(action_mask) * action_mask)


class LogSigLoss(nn.Module):
    def forward(self, chosen_reward: torch.Tensor, reject_reward: torch.Tensor) -> torch.Tensor:
        return -F.logsigmoid(chosen_reward - reject_reward).mean()


class LogExpLoss(nn.Module):
    """Infinite once the exponential overflows (D26)."""

    def forward(self, chosen_reward: torch.Tensor, reject_reward: torch.Tensor) -> torch.Tensor:
        return torch.log(1 + torch.exp(reject_reward - chosen_reward)).mean()


class DpoLoss(nn.Module):
    def __init__(self, beta: float = 0.1, gamma: float = 0.0) -> None:
        super().__init__()
        self.beta = beta
        self.gamma = gamma

    def forward(
        self,
        logprob_actor_chosen: torch.Tensor,
        logprob_actor_reject: torch.Tensor,
        logprob_ref_chosen: torch.Tensor,
        logprob_ref_reject: torch.Tensor,
        chosen_mask: torch.Tensor,
        reject_mask: torch.Tensor,
    ) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Log-probabilities (B, S - 1) to loss, chosen and rejected reward (B,)."""
        chosen = (logprob_actor_chosen * chosen_mask).sum(-1)
        reject = (logprob_actor_reject * reject_mask).sum(-1)
        ref_chosen = ref_reject = None
        ref_gap = 0.0
        if logprob_ref_chosen is not None and logprob_ref_reject is not None:
            ref_chosen = (logprob_ref_chosen * chosen_mask).sum(-1)
            ref_reject = (logprob_ref_reject * reject_mask).sum(-1)
            ref_gap = ref_chosen - ref_reject
        losses = -F.logsigmoid(self.beta * (chosen - reject - ref_gap - self.gamma / self.beta))
        if ref_chosen is not None:
            chosen, reject = chosen - ref_chosen, reject - ref_reject
        return losses.mean(), self.beta * chosen.detach(), self.beta * reject.detach()


class OddsRatioLoss(nn.Module):
    def _mean_log_odds(self, log_probs: torch.Tensor, loss_mask: torch.Tensor) -> torch.Tensor:
        log_probs = log_probs.float()
        odds = log_probs - torch.log(-torch.exp(log_probs) + 1.0001)
        return torch.sum(odds * loss_mask.float()) / torch.sum(loss_mask)

    def forward(
        self,
        chosen_logp: torch.Tensor,
        reject_logp: torch.Tensor,
        chosen_loss_mask: torch.Tensor,
        reject_loss_mask: torch.Tensor,
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        chosen = self._mean_log_odds(chosen_logp, chosen_loss_mask)
        log_odds_ratio = chosen - self._mean_log_odds(reject_logp, reject_loss_mask)
        return torch.log(torch.sigmoid(log_odds_ratio)).to(torch.bfloat16), log_odds_ratio
