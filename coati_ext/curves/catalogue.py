"""The curves that the patch ``metrics`` writes, as panels of a picture.

``docs/metrics.md`` tells what each is, and what a healthy one looks like.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Tuple

STAGES = {
    "rollout": "PPO and GRPO: what was sampled and how it was judged",
    "policy": "PPO and GRPO: training steps",
    "reward_model": "reward model: training steps",
    "reward_model_eval": "reward model: evaluation",
    "tokens": "tokens",
}


@dataclass(frozen=True)
class Panel:
    """One curve of a stage, with its spread if it has one."""

    title: str
    unit: str
    curve: str
    spread: str = ""
    """The curve of the standard deviation around it."""
    limits: Optional[Tuple[float, float]] = None
    """Of the axis, where the curve cannot leave them."""
    mark: Optional[float] = None
    """A value to hold it against."""

    @property
    def curves(self) -> Tuple[str, ...]:
        """The names of the curves that it shows."""
        return tuple(filter(None, (self.curve, self.spread)))


_SHARE = (0.0, 1.0)
PANELS = (
    Panel("score, mean and spread", "reward", "score_mean", "score_spread"),
    Panel("return, mean and spread", "reward", "return_mean", "return_spread"),
    Panel("margin, mean and spread", "reward", "margin_mean", "margin_spread", mark=0),
    Panel("pairs in the right order", "share", "accuracy", limits=_SHARE, mark=0.5),
    Panel("calibration error", "share", "calibration_error", limits=(0, 0.5), mark=0),
    Panel("moved by its batch", "reward", "batch_shift", mark=0),
    Panel("score against length", "correlation", "score_length_correlation", "", (-1, 1), 0),
    Panel("length", "tokens", "length_mean"),
    Panel("KL from the reference", "nats per answer", "kl", mark=0),
    Panel("entropy", "nats per token", "entropy"),
    Panel("variance that values explain", "share", "explained_variance", mark=0),
    Panel("cut off before their end", "share of answers", "missing_end", limits=_SHARE),
    Panel("policy ratio, mean and spread", "ratio", "ratio_mean", "ratio_spread", mark=1),
    Panel("ratios out of the clip range", "share of actions", "clip_share", limits=_SHARE),
    Panel("KL of the step", "nats per token", "step_kl", mark=0),
    Panel("scored at the end token", "share of rows", "pooled_end", limits=_SHARE, mark=1),
    Panel("scored at a stop sequence", "share of rows", "pooled_stop", limits=_SHARE),
    Panel("scored at content", "share of rows", "pooled_content", limits=_SHARE),
    Panel("scored at a pad", "share of rows", "pooled_pad", limits=_SHARE, mark=0),
    Panel("padding", "share of columns", "padding", limits=_SHARE),
    Panel("computed per real token", "ratio", "computed_per_real", mark=1),
)
