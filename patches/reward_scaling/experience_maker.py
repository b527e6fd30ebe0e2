"""``make_experience``: what ``reference`` lacks is told before answers are sampled, not after."""

from __future__ import annotations

from typing import Any, Callable

from coati_ext import options

from .modes import scale_of, valued


def require_calibration(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """Make experience; a reward model that is not calibrated is a ``StampError``."""
    if options("reward_scaling").mode == "reference":
        for model in valued(self.reward_model):
            scale_of(model)
    return original(self, *args, **kwargs)
