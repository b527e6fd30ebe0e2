"""Scores of a rollout: those of its rows, then all of them in the unit of ``scale_reward``.

A forward of a reward model scales what it returns. Whether it is called for a rollout, whose scores
are then scaled together as far as that needs all of them, is not an argument, because the
``forward`` of a wrapper might not pass it on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Mapping

from coati_ext.active import choice

if TYPE_CHECKING:
    from torch import Tensor

    from coati_ext.rollout.frame import Frame

_maker: Any = None  # whose rollout is scored; no ContextVar, which torch.compile cannot read


def scores_of_rows(maker: Any, frame: Frame, extras: Mapping[str, Any]) -> Tensor:
    """The scores (B,) of some rows of a rollout, by the hook ``score_rows``."""
    global _maker
    before, _maker = _maker, maker
    try:
        scores: Tensor = choice("score_rows")(maker.reward_model, frame, extras)
    finally:
        _maker = before
    return scores


def scaled_rollout(maker: Any, scores: Tensor) -> Tensor:
    """All scores (B,) of a rollout on this rank, by the hook ``scale_reward``."""
    scaled: Tensor = choice("scale_reward")(scores, None, maker)
    return scaled


def scaled_forward(model: Any, reward: Tensor) -> Tensor:
    """What a forward of a reward model returns, (B,): as it is in training, else scaled."""
    if model.training:
        return reward
    scaled: Tensor = choice("scale_reward")(reward, model, _maker)
    return scaled
