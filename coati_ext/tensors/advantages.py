"""How much better each action was than expected. Letters: B rows, A action columns."""

from __future__ import annotations

import torch
from torch import Tensor


def gae(values: Tensor, rewards: Tensor, action_mask: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimation over the real actions: (B, A), zero elsewhere.

    Schulman et al. (arXiv 1506.02438), equation 16, of an answer that ends with its last action.
    The discounted sum of the residuals is a scan of log2(A) doublings, not a loop over columns.

    Args:
        values: (B, A) the value before each action, floating point.
        rewards: (B, A) floating point.
        action_mask: (B, A) bool, real actions first; whatever is elsewhere changes nothing.
        gamma: discount per action.
        lam: lambda, the weight of longer estimates.
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
    """The whole answer's reward less the value before its first action: (B, A), zero elsewhere.

    The bandit view of G1 and G2, in which an answer is one action, with a baseline that does not
    know the answer.

    Args:
        values: (B, A) the value before each action, floating point.
        rewards: (B, A) floating point.
        action_mask: (B, A) bool, real actions first.
    """
    gained = rewards.masked_fill(~action_mask, 0).sum(dim=1, keepdim=True) - values[:, :1]
    return gained.expand_as(values).masked_fill(~action_mask, 0)


def group_advantage(score: Tensor, kl: Tensor, group_size: int, kl_coef: float) -> Tensor:
    """Each answer's score against the other answers to its prompt: (B,).

    GRPO (arXiv 2402.03300), section 4.1.2: scores are standardised within the group. The penalty
    is compared with the group's too but keeps its own scale, since dividing it by the spread of
    equal scores would blow its noise up to the size of a signal.

    Args:
        score: (B,) floating point, the answers to one prompt side by side.
        kl: (B,) mean KL estimate of each answer.
        group_size: answers to each prompt.
        kl_coef: weight of the penalty.
    """
    scores, penalties = score.view(-1, group_size), kl_coef * kl.view(-1, group_size)
    standard = (scores - scores.mean(dim=1, keepdim=True)) / (
        scores.std(dim=1, keepdim=True) + 1e-4
    )
    return (standard - penalties + penalties.mean(dim=1, keepdim=True)).view(-1)


def moments(values: Tensor, mask: Tensor) -> Tensor:
    """Count, sum and sum of squares of the real values, (3,): they add up over ranks."""
    real = values.masked_fill(~mask, 0).double()
    return torch.stack([mask.sum().double(), real.sum(), (real * real).sum()])


def whitened(values: Tensor, mask: Tensor, totals: Tensor) -> Tensor:
    """Real values shifted to mean 0 and scaled to standard deviation 1, zero elsewhere.

    Args:
        values: any shape, floating point.
        mask: of the same shape, bool.
        totals: (3,) from :func:`moments`, summed over whatever is to be whitened together.
    """
    count, total, squares = totals.unbind()
    mean = total / count.clamp(min=1)
    variance = (squares / count.clamp(min=1) - mean * mean).clamp(min=0)
    scaled = (values.double() - mean) / (variance.sqrt() + 1e-8)
    return scaled.to(values.dtype).masked_fill(~mask, 0)
