"""Losses whose values and gradients stay finite. Letters: B rows, A action columns."""

from __future__ import annotations

from typing import Optional, Tuple

import torch
from torch import Tensor

# exp(80) is finite in float32, so that 0 * exp is 0 in the backward of a clamp, not nan.
_LARGEST = 80.0


def pairwise_loss(chosen_reward: Tensor, reject_reward: Tensor) -> Tensor:
    """``-mean(log sigmoid(chosen - rejected))``, equally ``mean(log(1 + exp(rejected - chosen)))``.

    The first form is equation 1 of InstructGPT (arXiv 2203.02155), the second that of Anthropic's
    HH paper (arXiv 2204.05862); they are one function, and ``logsigmoid`` computes it without the
    overflow that either has when written out.

    Args:
        chosen_reward: (B,) floating point.
        reject_reward: (B,) floating point.

    Returns:
        A scalar, float32 for half-precision rewards (whose margins overflow float16) and of the
        rewards' own dtype otherwise.
    """
    dtype = torch.promote_types(chosen_reward.dtype, torch.float32)
    margin = chosen_reward.to(dtype) - reject_reward.to(dtype)
    return -torch.nn.functional.logsigmoid(margin).mean()


def real_actions(like: Tensor, action_mask: Optional[Tensor]) -> Tensor:
    """A bool mask (B, A) from one of any dtype; ``None`` says that every column is an action.

    Args:
        like: (B, A), for shape and device where there is no mask.
        action_mask: (B, A) true for real actions, or ``None``.
    """
    return torch.ones_like(like, dtype=torch.bool) if action_mask is None else action_mask != 0


def policy_ratio(
    log_probs: Tensor, old_log_probs: Tensor, action_mask: Optional[Tensor]
) -> Tuple[Tensor, Tensor]:
    """The probability ratio of each action, 1 where there is none, and the mask: (B, A) each.

    Args:
        log_probs: (B, A) floating point, of the policy being trained.
        old_log_probs: (B, A) of the policy that sampled.
        action_mask: (B, A) true for real actions; ``None`` says that every column is one.

    Returns:
        The ratio in float32 or wider, and a bool mask.
    """
    mask = real_actions(log_probs, action_mask)
    dtype = torch.promote_types(log_probs.dtype, torch.float32)
    log_ratio = (log_probs.to(dtype) - old_log_probs.to(dtype)).masked_fill(~mask, 0)
    return log_ratio.clamp(-_LARGEST, _LARGEST).exp(), mask


def policy_loss(ratio: Tensor, advantages: Tensor, mask: Tensor, clip_eps: float) -> Tensor:
    """PPO's clipped surrogate (arXiv 1707.06347, equation 7), a mean over rows of row means.

    Args:
        ratio: (B, A) floating point.
        advantages: (B, A), or (B, 1) for one advantage of the whole answer.
        mask: (B, A) bool.
        clip_eps: half the width of the trust region.
    """
    advantages = advantages.expand_as(ratio).masked_fill(~mask, 0)
    clipped = ratio.clamp(1 - clip_eps, 1 + clip_eps)
    surrogate = torch.min(ratio * advantages, clipped * advantages).masked_fill(~mask, 0)
    return -(surrogate.sum(dim=1) / mask.sum(dim=1).clamp(min=1)).mean()


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    action_mask: Optional[Tensor],
    clip_eps: float,
) -> Tensor:
    """PPO's clipped value loss, a mean over the real actions of the batch, 0 where there is none.

    Args:
        values: (B, A) floating point.
        old_values: (B, A).
        returns: (B, A), the target.
        action_mask: (B, A) true for real actions; ``None`` says that every column is one.
        clip_eps: how far a value may move from the old one.
    """
    mask = real_actions(values, action_mask)
    dtype = torch.promote_types(values.dtype, torch.float32)
    values, old, target = (
        item.to(dtype).masked_fill(~mask, 0) for item in (values, old_values, returns)
    )
    near = old + (values - old).clamp(-clip_eps, clip_eps)
    worse = torch.max((near - target) ** 2, (values - target) ** 2)
    return 0.5 * worse.sum() / mask.sum().clamp(min=1)
