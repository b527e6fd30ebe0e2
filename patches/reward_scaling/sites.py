"""The sites: a reward model's training loop, for the centring term, and the start of a rollout.

Rewards are scaled by the hook ``scale_reward``, which the patched reward models and rollouts call.
"""

from __future__ import annotations

from typing import Tuple

from coati_ext import Reliance, Site

_OURS = "coati_ext.patches.reward_scaling."

SITES = (
    *(
        Site(
            f"coati.trainer.rm:RewardModelTrainer.{name}",
            _OURS + "reward_trainer:with_centring",
            generations=generations,
            mode="wrap",
            takes=("self",),
            optional="G1" in generations,
        )
        for name, generations in (
            ("fit", ("G1",)),  # of its own before v0.3.1
            ("_train", ("G1",)),
            ("_train", ("G2", "G3", "G4")),
        )
    ),
    Site(
        "coati.experience_maker.naive:NaiveExperienceMaker.make_experience",
        _OURS + "experience_maker:require_calibration",
        generations=("G1", "G2", "G3", "G4"),
        mode="wrap",
        takes=("self",),
    ),
)
RELIES: Tuple[Reliance, ...] = ()
