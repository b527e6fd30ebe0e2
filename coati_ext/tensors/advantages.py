"""Advantage estimators. Letters: B rows, A action columns."""

from __future__ import annotations

import torch
from torch import Tensor


def gae(values: Tensor, rewards: Tensor, action_mask: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimation over the real actions: (B, A), zero elsewhere.

    Schulman et al. (arXiv 1506.02438), equation 16. The episode ends with the last action, so the
    value after it is 0. The discounted sum of TD residuals is a parallel scan in log2(A) steps.

    Args:
        values: (B, A) the value before each action, floating point.
        rewards: (B, A) floating point.
        action_mask: (B, A) bool, real actions first. Other columns of the inputs are ignored.
        gamma: discount per action.
        lam: GAE's lambda.
    """
    values = values.masked_fill(~action_mask, 0)
    following = torch.nn.functional.pad(values[:, 1:], (0, 1))
    total = (rewards + gamma * following - values).masked_fill(~action_mask, 0)
    reach, weight = 1, gamma * lam
    while reach < total.size(1):
        total = total + weight * torch.nn.functional.pad(total[:, reach:], (0, reach))
        reach, weight = 2 * reach, weight * weight
    return total.masked_fill(~action_mask, 0)


def sequence_advantage(values: Tensor, rewards: Tensor, action_mask: Tensor) -> Tensor:
    """The answer's summed reward minus the value before its first action: (B, A), zero elsewhere.

    G1 and G2 treat an answer as one bandit action. The baseline is the value of the prompt, so it
    does not depend on the answer.

    Args:
        values: (B, A) the value before each action, floating point.
        rewards: (B, A) floating point.
        action_mask: (B, A) bool, real actions first.
    """
    gained = rewards.masked_fill(~action_mask, 0).sum(dim=1, keepdim=True) - values[:, :1]
    return gained.expand_as(values).masked_fill(~action_mask, 0)


def group_advantage(score: Tensor, kl: Tensor, group_size: int, kl_coef: float) -> Tensor:
    """GRPO's advantage of each answer within the group of answers to its prompt: (B,).

    Scores are standardised within the group (arXiv 2402.03300, section 4.1.2). The KL penalty is
    only centred. If all scores of a group are equal, their standard deviation is near 0, and
    dividing the penalty by it would amplify noise.

    Args:
        score: (B,) floating point; answers to the same prompt are adjacent.
        kl: (B,) mean KL estimate of each answer.
        group_size: answers to each prompt.
        kl_coef: weight of the KL penalty.
    """
    scores, penalties = score.view(-1, group_size), kl_coef * kl.view(-1, group_size)
    standard = (scores - scores.mean(dim=1, keepdim=True)) / (
        scores.std(dim=1, keepdim=True) + 1e-4
    )
    return (standard - penalties + penalties.mean(dim=1, keepdim=True)).view(-1)


def moments(values: Tensor, mask: Tensor) -> Tensor:
    """Count, sum and sum of squares of the unmasked values, (3,), to be summed over ranks."""
    real = values.masked_fill(~mask, 0).double()
    return torch.stack([mask.sum().double(), real.sum(), (real * real).sum()])


def whitened(values: Tensor, mask: Tensor, totals: Tensor) -> Tensor:
    """Unmasked values shifted to mean 0 and scaled to standard deviation 1, zero elsewhere.

    Args:
        values: any shape, floating point.
        mask: of the same shape, bool.
        totals: (3,) from :func:`moments`, summed over all values that share a mean and deviation.
    """
    count, total, squares = totals.unbind()
    mean = total / count.clamp(min=1)
    variance = (squares / count.clamp(min=1) - mean * mean).clamp(min=0)
    scaled = (values.double() - mean) / (variance.sqrt() + 1e-8)
    return scaled.to(values.dtype).masked_fill(~mask, 0)
