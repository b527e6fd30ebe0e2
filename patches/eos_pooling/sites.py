"""The sites: ``RewardModel.forward``, which every model family inherits."""

from __future__ import annotations

from coati_ext import Reliance, Site

_OURS = "coati_ext.patches.eos_pooling.reward_model:"
_NEEDS = ("self.model", "self.value_head")

SITES = (
    Site(
        "coati.models.base.reward_model:RewardModel.forward",
        _OURS + "forward_sequences",
        generations=("G1",),
        needs=_NEEDS,
    ),
    Site(
        "coati.models.base.reward_model:RewardModel.forward",
        _OURS + "forward_sequences",
        generations=("G2",),
        needs=_NEEDS,
    ),
    Site(
        "coati.models.reward_model:RewardModel.forward",
        _OURS + "forward_input_ids",
        generations=("G3",),
        needs=_NEEDS,
    ),
    Site(
        "coati.models.reward_model:RewardModel.forward",
        _OURS + "forward_with_extras",
        generations=("G4",),
        needs=_NEEDS,
    ),
)

RELIES = (
    Reliance(
        "coati.models.base.reward_model:RewardModel.__init__",
        ("G1", "G2"),
        why="gives the model its backbone and its value head",
    ),
    *(
        Reliance(
            f"coati.models.{name}.__init__",
            ("G3", "G4"),
            why="gives the model its backbone and its value head",
        )
        for name in ("base:BaseModel", "reward_model:RewardModel")
    ),
)
