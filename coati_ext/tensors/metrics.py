"""What the curves of a training are drawn of: sums, which add up over batches and over ranks.

The first functions make sums of tensors, on their device. The classes make numbers of sums that the
host has read, so that a mean, a deviation or a correlation over all ranks is that of all their
rows, not the mean of each rank's own. Letters: N numbers.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Optional, Sequence

import torch
from torch import Tensor

BINS = 10
_NAN = float("nan")


def joint_sums(first: Tensor, second: Tensor, mask: Optional[Tensor] = None) -> Tensor:
    """Count, sums, sums of squares and of products of two numbers each, (6,) float64.

    Args:
        first: (N,) or of any shape, floating point, integer or bool.
        second: the same.
        mask: the same, bool; numbers where it is false are left out, whatever they are.
    """
    one, other = first.double(), second.double()
    if mask is None:
        mask = torch.ones_like(one, dtype=torch.bool)
    one, other = one.masked_fill(~mask, 0), other.masked_fill(~mask, 0)
    parts = (mask.double(), one, other, one * one, other * other, one * other)
    return torch.stack([part.sum() for part in parts])


def calibration_sums(margin: Tensor) -> Tensor:
    """How sure a reward model was and how often it was right, by bins, (3 * BINS,) float64.

    A pair with the margin m is told apart with confidence ``sigmoid(|m|)``, and rightly if m > 0:
    for each of ``BINS`` equal parts of 0.5 to 1 the number of pairs, their confidence and how many
    were right.

    Args:
        margin: (N,) reward of the chosen answer less that of the rejected one.
    """
    confidence = margin.double().abs().sigmoid()
    place = ((confidence - 0.5) * (2 * BINS)).long().clamp(max=BINS - 1)
    told = torch.stack([torch.ones_like(confidence), confidence, (margin > 0).double()])
    sums = torch.zeros(3, BINS, dtype=torch.float64, device=margin.device)
    return sums.index_add(1, place, told).flatten()


class Joint(NamedTuple):
    """The numbers of :func:`joint_sums`; nan where there are none, or too few."""

    number: float
    first: float
    second: float
    first_squares: float
    second_squares: float
    products: float

    @property
    def mean(self) -> float:
        """Of the first number."""
        return self.first / self.number if self.number else _NAN

    @property
    def mean_second(self) -> float:
        """Of the second number."""
        return self.second / self.number if self.number else _NAN

    @property
    def spread(self) -> float:
        """The standard deviation of the first number, over N."""
        return math.sqrt(self._variance)

    @property
    def correlation(self) -> float:
        """Pearson's, of the two; nan where one of them is always the same."""
        scale = self._variance * self._variance_second
        return self._covariance / math.sqrt(scale) if scale > 0 else _NAN

    @property
    def explained_variance(self) -> float:
        """How much of the second number's variance the first one explains.

        1 is all, 0 is what a constant explains, and less than 0 is worse than a constant.
        """
        if not self._variance_second > 0:
            return _NAN
        left = self._variance_second + self._variance - 2 * self._covariance
        return 1 - left / self._variance_second

    @property
    def root_mean_square(self) -> float:
        """Of the first number."""
        return math.sqrt(self.first_squares / self.number) if self.number else _NAN

    @property
    def _variance(self) -> float:
        return _variance(self.first_squares, self.mean, self.number)

    @property
    def _variance_second(self) -> float:
        return _variance(self.second_squares, self.mean_second, self.number)

    @property
    def _covariance(self) -> float:
        return self.products / self.number - self.mean * self.mean_second


def _variance(squares: float, mean: float, count: float) -> float:
    """Zero where it is lost in the rounding of the sums."""
    if not count:
        return _NAN
    found = squares / count - mean * mean
    return found if found > 1e-12 * squares / count else 0.0


def calibration_error(sums: Sequence[float]) -> float:
    """The expected calibration error of :func:`calibration_sums`: nan without a pair.

    Guo et al. (arXiv 1706.04599), equation 3: the mean over pairs of the distance between a bin's
    confidence and its share of right answers.
    """
    pairs, confidence, right = (sums[at : at + BINS] for at in (0, BINS, 2 * BINS))
    total = sum(pairs)
    return sum(abs(sure - true) for sure, true in zip(confidence, right)) / total if total else _NAN
