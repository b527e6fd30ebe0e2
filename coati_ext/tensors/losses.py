"""Pairwise reward-model losses that stay finite at any margin."""

from __future__ import annotations

import torch
from torch import Tensor


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
