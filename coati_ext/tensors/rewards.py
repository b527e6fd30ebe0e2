"""Per-token rewards from the score of an answer. Letters: B rows, A action columns."""

from __future__ import annotations

import torch
from torch import Tensor


def terminal_reward(score: Tensor, penalty: Tensor, action_mask: Tensor) -> Tensor:
    """The score on the last action, minus a penalty on every action: (B, A).

    A row without an action gets zeros. Ziegler et al. (arXiv 1909.08593), equation 2, with the
    penalty per token as in InstructGPT (arXiv 2203.02155).

    Args:
        score: (B,) floating point.
        penalty: (B, A) floating point.
        action_mask: (B, A) bool, real actions first.
    """
    last = (action_mask.sum(dim=1, keepdim=True) - 1).clamp(min=0)
    landed = torch.zeros_like(penalty).scatter(1, last, score.to(penalty.dtype).unsqueeze(1))
    return (landed - penalty).masked_fill(~action_mask, 0)


def every_token_reward(score: Tensor, penalty: Tensor, action_mask: Tensor) -> Tensor:
    """The full score on every action, as in upstream's G3 and G4: (B, A).

    The undiscounted return then grows with the length of the answer.

    Args:
        score: (B,) floating point.
        penalty: (B, A) floating point.
        action_mask: (B, A) bool.
    """
    return (score.to(penalty.dtype).unsqueeze(1) - penalty).masked_fill(~action_mask, 0)
