"""Losses with finite values and gradients. Letters: B rows, A action columns."""

from __future__ import annotations

from typing import Optional, Tuple

import torch
from torch import Tensor

# exp(80) is finite in float32, so that 0 * exp is 0 in the backward of a clamp, not nan.
_LARGEST = 80.0


def pairwise_loss(chosen_reward: Tensor, reject_reward: Tensor) -> Tensor:
    """``-mean(log sigmoid(chosen - rejected))``, equally ``mean(log(1 + exp(rejected - chosen)))``.

    The first form is equation 1 of InstructGPT (arXiv 2203.02155), the second is that of the
    Anthropic HH paper (arXiv 2204.05862). They are equal. Both overflow if computed as written;
    ``logsigmoid`` does not.

    Args:
        chosen_reward: (B,) floating point.
        reject_reward: (B,) floating point.

    Returns:
        A scalar: float32 for half-precision rewards, because a margin can overflow float16, and
        the dtype of the rewards otherwise.
    """
    dtype = torch.promote_types(chosen_reward.dtype, torch.float32)
    margin = chosen_reward.to(dtype) - reject_reward.to(dtype)
    return -torch.nn.functional.logsigmoid(margin).mean()


def real_actions(like: Tensor, action_mask: Optional[Tensor]) -> Tensor:
    """A bool mask (B, A) from a mask of any dtype; ``None`` means that every column is an action.

    Args:
        like: (B, A), gives shape and device if there is no mask.
        action_mask: (B, A) true for real actions, or ``None``.
    """
    return torch.ones_like(like, dtype=torch.bool) if action_mask is None else action_mask != 0


def policy_ratio(
    log_probs: Tensor, old_log_probs: Tensor, action_mask: Optional[Tensor]
) -> Tuple[Tensor, Tensor]:
    """The probability ratio of each action, 1 where masked, and the mask: (B, A) each.

    Args:
        log_probs: (B, A) floating point, of the policy being trained.
        old_log_probs: (B, A) of the policy that sampled.
        action_mask: (B, A) true for real actions; ``None`` means that every column is one.

    Returns:
        The ratio in float32 or wider, and a bool mask.
    """
    mask = real_actions(log_probs, action_mask)
    dtype = torch.promote_types(log_probs.dtype, torch.float32)
    log_ratio = (log_probs.to(dtype) - old_log_probs.to(dtype)).masked_fill(~mask, 0)
    return log_ratio.clamp(-_LARGEST, _LARGEST).exp(), mask


def policy_loss(ratio: Tensor, advantages: Tensor, mask: Tensor, clip_eps: float) -> Tensor:
    """PPO's clipped surrogate loss (arXiv 1707.06347, equation 7).

    It is averaged over the real actions of each row, then over rows.

    Args:
        ratio: (B, A) floating point.
        advantages: (B, A), or (B, 1) for one advantage per answer.
        mask: (B, A) bool.
        clip_eps: epsilon; the ratio is clipped to 1 +- epsilon.
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
    """PPO's clipped value loss, as in OpenAI Baselines' ``ppo2``.

    It is averaged over the real actions of the batch, and 0 if there are none.

    Args:
        values: (B, A) floating point.
        old_values: (B, A) from the rollout.
        returns: (B, A), the target.
        action_mask: (B, A) true for real actions; ``None`` means that every column is one.
        clip_eps: values are clipped to the old values +- ``clip_eps``.
    """
    mask = real_actions(values, action_mask)
    dtype = torch.promote_types(values.dtype, torch.float32)
    values, old, target = (
        item.to(dtype).masked_fill(~mask, 0) for item in (values, old_values, returns)
    )
    near = old + (values - old).clamp(-clip_eps, clip_eps)
    worse = torch.max((near - target) ** 2, (values - target) ** 2)
    return 0.5 * worse.sum() / mask.sum().clamp(min=1)
