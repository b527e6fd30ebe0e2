"""Losses with finite values and gradients. Letters: B rows, A action columns.

They take whatever shapes upstream's take: arguments of one loss are broadcast, and may be numbers.
"""

from __future__ import annotations

from typing import Optional, Tuple, Union

import torch
from torch import Tensor

# exp(80) is finite in float32, so that 0 * exp is 0 in the backward of a clamp, not nan.
_LARGEST = 80.0


def pairwise_loss(
    chosen_reward: Union[Tensor, float], reject_reward: Union[Tensor, float]
) -> Tensor:
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
    margin = widened(chosen_reward) - widened(reject_reward)
    return -torch.nn.functional.logsigmoid(margin).mean()


def widened(item: Union[Tensor, float]) -> Tensor:
    """A tensor or number as a tensor of float32, or of its own dtype if that is wider."""
    tensor = torch.as_tensor(item)
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def real_actions(like: Tensor, action_mask: Optional[Tensor]) -> Tensor:
    """A bool mask (B, A) from a mask of any dtype; ``None`` means that every column is an action.

    Args:
        like: (B, A), gives shape and device if there is no mask.
        action_mask: (B, A) true for real actions, or ``None``.
    """
    return torch.ones_like(like, dtype=torch.bool) if action_mask is None else action_mask != 0


def policy_ratio(
    log_probs: Tensor, old_log_probs: Union[Tensor, float], action_mask: Optional[Tensor]
) -> Tuple[Tensor, Tensor]:
    """The probability ratio of each action, 1 where masked, and the mask: (B, A) each.

    Args:
        log_probs: (B, A) floating point, of the policy being trained.
        old_log_probs: (B, A) of the policy that sampled.
        action_mask: (B, A) true for real actions; ``None`` means that every column is one.

    Returns:
        The ratio in float32 or wider, and a bool mask.
    """
    log_ratio = widened(log_probs) - widened(old_log_probs)
    mask = real_actions(log_ratio, action_mask)
    return log_ratio.masked_fill(~mask, 0).clamp(-_LARGEST, _LARGEST).exp(), mask


def policy_loss(
    ratio: Tensor,
    advantages: Union[Tensor, float],
    action_mask: Optional[Tensor],
    clip_eps: float,
) -> Tensor:
    """PPO's clipped surrogate loss (arXiv 1707.06347, equation 7).

    It is averaged over the real actions of each row, then over rows; without a mask, over all.

    Args:
        ratio: (B, A) floating point, 1 where masked.
        advantages: (B, A), or (B, 1) for one advantage per answer.
        action_mask: (B, A), not zero for real actions, which a mask of fractions weighs.
        clip_eps: epsilon; the ratio is clipped to 1 +- epsilon.
    """
    advantages = torch.as_tensor(advantages, device=ratio.device)
    if action_mask is not None:
        advantages = advantages.masked_fill(action_mask == 0, 0)
    clipped = ratio.clamp(1 - clip_eps, 1 + clip_eps)
    surrogate = torch.min(ratio * advantages, clipped * advantages)
    if action_mask is None:
        return -surrogate.mean()
    # Upstream's sum, which broadcasts as its masked_mean does and is 0 for a row without an action.
    return -((surrogate * action_mask).sum(dim=1) / (action_mask.sum(dim=1) + 1e-8)).mean()


def value_loss(
    values: Union[Tensor, float],
    old_values: Union[Tensor, float],
    returns: Union[Tensor, float],
    action_mask: Optional[Tensor],
    clip_eps: float,
) -> Tensor:
    """PPO's clipped value loss, as in OpenAI Baselines' ``ppo2``.

    It is averaged over the real actions of the batch, and 0 if there are none.

    Args:
        values: (B, A) floating point.
        old_values: (B, A) from the rollout.
        returns: (B, A), the target.
        action_mask: (B, A), not zero for real actions, which a mask of fractions weighs; ``None``
            means that every column is one.
        clip_eps: values are clipped to the old values +- ``clip_eps``.
    """
    new, old, target = map(widened, (values, old_values, returns))
    if action_mask is not None:
        new, old, target = (item.masked_fill(action_mask == 0, 0) for item in (new, old, target))
    near = old + (new - old).clamp(-clip_eps, clip_eps)
    worse = torch.max((near - target) ** 2, (new - target) ** 2)
    if action_mask is None:
        return 0.5 * worse.mean()
    count = action_mask.sum()
    return 0.5 * (worse * action_mask).sum() / count.masked_fill(count == 0, 1)
