"""Small tensor helpers; B rows, A actions, S columns, V words."""

from __future__ import annotations

from typing import Optional, Union

import torch


def masked_mean(tensor: torch.Tensor, mask: torch.Tensor, dim: int = 1) -> torch.Tensor:
    return (tensor * mask).sum(dim=dim) / (mask.sum(dim=dim) + 1e-8)


def _compute_approx_kl(
    log_probs: torch.Tensor,
    log_probs_base: torch.Tensor,
    action_mask: Optional[torch.Tensor] = None,
) -> torch.Tensor:
    # The "k3" estimator; exp() explodes when the policy is far below the reference (D14).
    gap = log_probs_base - log_probs
    per_token = gap.exp() - 1 - gap
    if action_mask is None:
        return per_token.mean(dim=1)
    return masked_mean(per_token, action_mask, dim=1)


def compute_reward(
    r: Union[torch.Tensor, float],
    kl_coef: float,
    log_probs: torch.Tensor,
    log_probs_base: torch.Tensor,
    action_mask: Optional[torch.Tensor] = None,
) -> torch.Tensor:
    """One number per row: the whole answer is a single step (D4)."""
    if kl_coef <= 0.0:
        return r
    return r - kl_coef * _compute_approx_kl(log_probs, log_probs_base, action_mask=action_mask)


def _log_probs_from_logits(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    picked = torch.log_softmax(logits, dim=-1).gather(-1, labels[..., None])
    return picked[..., 0]


def calc_action_log_probs(
    logits: torch.Tensor, sequences: torch.LongTensor, num_actions: int
) -> torch.Tensor:
    """Log-probabilities (B, A) of the last `num_actions` tokens from logits (B, S, V)."""
    return _log_probs_from_logits(logits[:, :-1], sequences[:, 1:])[:, -num_actions:]
