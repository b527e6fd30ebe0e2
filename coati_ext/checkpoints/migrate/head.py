"""A value head, its fit to preference pairs, and metrics of its scores."""

from __future__ import annotations

from math import comb
from typing import Optional, Tuple

import torch
from torch import Tensor, nn


class Head:
    """A value head that computes in double precision."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.weight = weight
        self.bias = bias

    def __call__(self, hidden: Tensor) -> Tensor:
        """Scores (...) of hidden states (..., H)."""
        scores: Tensor = hidden.double() @ self.weight[0].double() + self.bias.double()
        return scores


def fit(hidden: Tensor, start: Tensor) -> Tensor:
    """Fit the weight (H,) to the pairwise logistic loss, with an L2 penalty, in double precision.

    With features standardised by the spread of their differences, the penalty on the change dw of
    the weight is (H/2N) ||dw||^2. This corresponds to a prior under which dw changes the margins by
    about 1. It fixes the directions that the pairs do not determine. The penalty is 0 at the start,
    so the loss of the result is never above that of the start.

    Args:
        hidden: (N, 2, H); index 0 of each pair is the chosen answer.
        start: (H,), the old weight.
    """
    difference = hidden[:, 0].double() - hidden[:, 1].double()
    spread = difference.pow(2).mean(dim=0).sqrt()
    # A spread below 1 % of the feature's size may be rounding noise; do not scale that up to 1.
    size = hidden.double().pow(2).mean(dim=(0, 1)).sqrt()
    unit = torch.maximum(spread, size / 100).clamp(min=torch.finfo(torch.float64).tiny)
    scaled, margin = difference / unit, difference @ start.double()
    ridge = scaled.size(1) / scaled.size(0) / 2
    move = torch.zeros_like(unit, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [move],
        max_iter=1000,
        tolerance_grad=1e-8,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.softplus(-(margin + scaled @ move)).mean()
        loss = loss + ridge * move.pow(2).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(objective)  # type: ignore[no-untyped-call]
    return start.double() + move.detach() / unit


def accuracy(scores: Tensor) -> float:
    """The share of pairs (N, 2) whose chosen answer scores higher."""
    return float((scores[:, 0] > scores[:, 1]).double().mean())


def changes(before: Tensor, after: Tensor) -> Tuple[int, int]:
    """How many pairs (N, 2) were ranked right before and are not after, and the other way round."""
    right, still = (scores[:, 0] > scores[:, 1] for scores in (before, after))
    return int((right & ~still).sum()), int((~right & still).sum())


def chance_of(lost: int, won: int) -> float:
    """The probability of so many losses or more, if a changed pair is lost or won by equal chance.

    This is McNemar's exact test, one-sided: the pairs that are ranked as before say nothing.
    """
    changed = lost + won
    ways = cases = comb(changed, lost)
    for number in range(lost, changed):
        ways = ways * (changed - number) // (number + 1)  # comb(changed, number + 1)
        cases += ways
    return cases / (1 << changed)


def loss(scores: Tensor) -> float:
    """The mean pairwise logistic loss of scores (N, 2)."""
    return float(nn.functional.softplus(scores[:, 1] - scores[:, 0]).mean())


def correlation(one: Tensor, other: Tensor) -> Optional[float]:
    """Pearson's correlation of two vectors; ``None`` if one of them is constant."""
    one, other = one - one.mean(), other - other.mean()
    size = one.norm() * other.norm()
    return float(one @ other / size) if size > 0 else None


def ranks(values: Tensor) -> Tensor:
    """The rank of each number; ties get their mean rank."""
    ordered = values.sort().values
    below = torch.searchsorted(ordered, values)
    return (below + torch.searchsorted(ordered, values, right=True)).double() / 2
