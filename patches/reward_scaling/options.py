"""The configuration section ``[reward_scaling]``."""

from __future__ import annotations

from dataclasses import dataclass

from coati_ext import option


@dataclass(frozen=True)
class Options:
    """``[reward_scaling]``."""

    mode: str = option(
        "reference",
        "what rewards are shifted and scaled by: reference (mean and spread of the answers that "
        "coati-ext calibrate has measured), running (those of all rollouts so far, over all "
        "ranks), off (nothing) or the scale_reward of a plugin, by its name",
        chooses="scale_reward",
        without="off",
    )
    center: float = option(
        0.0,
        "weight of mean((chosen + rejected)^2) in the loss of a reward model's training, which "
        "draws the level of its rewards to 0; 0.01 is usual",
        minimum=0,
    )
