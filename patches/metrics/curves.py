"""The curves: what is drawn of which sums.

Observers name their sums ``stage/kind``. A kind makes one or more curves ``stage/curve``, each a
number without which its sums are nan. ``docs/metrics.md`` explains them one by one.
"""

from __future__ import annotations

from typing import Callable, Dict, Sequence

from coati_ext import tensors

Sums = Sequence[float]
Curves = Dict[str, float]


def curves_of(kind: str, sums: Sums) -> Curves:
    """The curves of a kind by name, from sums over all batches and ranks; nan where undefined."""
    return _KINDS[kind](sums)


def _scores(sums: Sums) -> Curves:
    both = tensors.Joint(*sums)
    return {
        "score_mean": both.mean,
        "score_spread": both.spread,
        "length_mean": both.mean_second,
        "score_length_correlation": both.correlation,
    }


def _answers(sums: Sums) -> Curves:
    both = tensors.Joint(*sums)
    return {"kl": both.mean, "missing_end": both.mean_second}


def _of(number: str, share: str = "") -> Callable[[Sums], Curves]:
    """Mean and spread of a number, and the mean of the second one as a share."""

    def curves(sums: Sums) -> Curves:
        both = tensors.Joint(*sums)
        found = {f"{number}_mean": both.mean, f"{number}_spread": both.spread}
        return {**found, share: both.mean_second} if share else found

    return curves


def _pooled(sums: Sums) -> Curves:
    rows = sum(sums) or float("nan")
    return {f"pooled_{name}": part / rows for name, part in zip(POOLED, sums)}


def _tokens(sums: Sums) -> Curves:
    computed, real, columns = (part or float("nan") for part in sums)
    return {"padding": 1 - real / columns, "computed_per_real": computed / real}


POOLED = ("end", "content", "pad", "stop")  # nobody tells a reward model which stops there are
_KINDS: Dict[str, Callable[[Sums], Curves]] = {
    "answers": _answers,
    "calibration": lambda sums: {"calibration_error": tensors.calibration_error(sums)},
    "change": lambda sums: {"step_kl": tensors.Joint(*sums).mean},
    "entropy": lambda sums: {"entropy": tensors.Joint(*sums).mean},
    "margins": _of("margin", "accuracy"),
    "pooled": _pooled,
    "ratios": _of("ratio", "clip_share"),
    "returns": _of("return"),
    "scores": _scores,
    "shift": lambda sums: {"batch_shift": tensors.Joint(*sums).root_mean_square},
    "used": _tokens,
    "values": lambda sums: {"explained_variance": tensors.Joint(*sums).explained_variance},
}
