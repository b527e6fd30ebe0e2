"""The sites: the training loop of a reward model, for the centring term.

Rewards are scaled by the hook ``scale_reward``, which the patched reward models and rollouts call.
"""

from __future__ import annotations

from typing import Tuple

from coati_ext import Reliance, Site

SITES = tuple(
    Site(
        f"coati.trainer.rm:RewardModelTrainer.{name}",
        "coati_ext.patches.reward_scaling.reward_trainer:with_centring",
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
)
RELIES: Tuple[Reliance, ...] = ()
