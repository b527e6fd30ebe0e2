"""The level and the spread of rewards, which a pairwise loss leaves open.

Letters: N numbers, R parts, B pairs.
"""

from __future__ import annotations

from typing import Tuple, Union

import torch
from torch import Tensor

from coati_ext.tensors.losses import widened


def reward_moments(rewards: Tensor) -> Tensor:
    """Count, mean and sum of squared deviations of rewards (N,): (3,) float64.

    Numbers that are nan or infinite do not count: one of them would stay in the moments for good.
    """
    finite = rewards.isfinite()
    numbers, count = rewards.double().masked_fill(~finite, 0), finite.sum().double()
    mean = numbers.sum() / count.clamp(min=1)
    squares = (numbers - mean).masked_fill(~finite, 0).square().sum()
    return torch.stack([count, mean, squares])


def combined_moments(parts: Tensor) -> Tensor:
    """The :func:`reward_moments` of all numbers together, (3,), from those of parts of them.

    Chan, Golub and LeVeque (1979), "Updating formulae and a pairwise algorithm for computing sample
    variances", for R parts at once. Unlike sums of squares it loses nothing where the mean is large
    against the spread.

    Args:
        parts: (R, 3) float64.
    """
    counts, means, squares = parts.unbind(dim=1)
    count = counts.sum()
    mean = (counts * means).sum() / count.clamp(min=1)
    between = (counts * (means - mean).square()).sum()
    return torch.stack([count, mean, squares.sum() + between])


def mean_and_spread(moments: Tensor) -> Tuple[Tensor, Tensor]:
    """The mean and the standard deviation, over N, of :func:`reward_moments`; scalars.

    Where all numbers are the same up to rounding, or there are none, the deviation is 1, so that
    dividing by it changes nothing.
    """
    count, mean, squares = moments.unbind()
    variance = squares / count.clamp(min=1)
    varies = variance > 1e-24 * mean.square()
    return mean, variance.where(varies, torch.ones_like(variance)).sqrt()


def scaled(rewards: Tensor, mean: Union[Tensor, float], spread: Union[Tensor, float]) -> Tensor:
    """``(rewards - mean) / spread``, computed in float64, in the dtype of the rewards (N,)."""
    return ((rewards.double() - mean) / spread).to(rewards.dtype)


def centring_loss(chosen_reward: Tensor, reject_reward: Tensor) -> Tensor:
    """``mean((chosen + rejected)^2)``, which draws the level of the rewards of pairs (B,) to 0.

    Eisenstein et al. (arXiv 2312.09244): added to the pairwise loss, it resolves what
    that leaves open. It is the term of TRL's ``center_rewards_coefficient``.

    Returns:
        A scalar, float32 or wider.
    """
    return (widened(chosen_reward) + widened(reject_reward)).square().mean()
