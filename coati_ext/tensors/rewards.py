"""Where the score of an answer lands among its actions. Letters: B rows, A action columns."""

from __future__ import annotations

import torch
from torch import Tensor


def terminal_reward(score: Tensor, penalty: Tensor, action_mask: Tensor) -> Tensor:
    """The score once, on the last action, less each action's own penalty: (B, A).

    A row without an action has no reward. Ziegler et al. (arXiv 1909.08593), equation 2, with the
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
    """The whole score on each action, as upstream's G3 and G4 do: the return grows with the length.

    Args:
        score: (B,) floating point.
        penalty: (B, A) floating point.
        action_mask: (B, A) bool.
    """
    return (score.to(penalty.dtype).unsqueeze(1) - penalty).masked_fill(~action_mask, 0)
