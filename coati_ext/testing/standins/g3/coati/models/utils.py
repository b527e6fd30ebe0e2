"""Small tensor helpers; B rows, A actions, S columns, V words."""

from __future__ import annotations

from typing import Optional, Tuple, Union

import torch


def compute_reward(
    r: Union[torch.Tensor, float],
    kl_coef: float,
    log_probs: torch.Tensor,
    log_probs_base: torch.Tensor,
    action_mask: Optional[torch.Tensor] = None,
    reward_eps: float = 5,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Rewards and logged KL, both (B, A).

    The clipped score lands on *every* action of its row (D12), and the logged KL is neither of
    the usual estimators (D13).
    """
    log_ratio = log_probs - log_probs_base
    penalty = -kl_coef * log_ratio * action_mask
    counts = action_mask.sum(dim=1)
    assert bool((counts > 0).all())
    in_answer = torch.arange(action_mask.size(1), device=log_ratio.device) < counts[:, None]
    score = torch.clamp(r, -reward_eps, reward_eps).view(len(action_mask), -1)
    reward = (penalty + score) * in_answer
    kl = (log_ratio * (log_ratio < 10)).exp() - 1 - log_ratio
    return reward, kl * action_mask


def _log_probs_from_logits(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    picked = torch.log_softmax(logits, dim=-1).gather(-1, labels[..., None])
    return picked[..., 0]


def calc_action_log_probs(
    logits: torch.Tensor, sequences: torch.LongTensor, num_actions: int
) -> torch.Tensor:
    """Log-probabilities (B, A) of the last `num_actions` tokens from logits (B, S, V)."""
    return _log_probs_from_logits(logits[:, :-1], sequences[:, 1:])[:, -num_actions:]


def masked_mean(tensor: torch.Tensor, mask: torch.Tensor, dim: int = 1) -> torch.Tensor:
    return (tensor * mask).sum(dim=dim) / (mask.sum(dim=dim) + 1e-8)


def calc_masked_log_probs(
    logits: torch.Tensor,
    sequences: torch.LongTensor,
    mask: torch.Tensor,
    length_normalization: bool = False,
) -> torch.Tensor:
    """Log-probabilities (B, S - 1) of every token but the first, zero outside the mask."""
    log_probs = _log_probs_from_logits(logits[:, :-1], sequences[:, 1:]) * mask
    return (
        log_probs / (mask.sum(dim=-1, keepdim=True) + 0.01) if length_normalization else log_probs
    )


def disable_dropout(model: Optional[torch.nn.Module]) -> None:
    """Reaches dropout modules only, not OPT's functional dropout (D30)."""
    for module in () if model is None else model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
