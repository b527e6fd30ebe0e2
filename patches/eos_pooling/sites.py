"""The sites: ``RewardModel.forward``, which every model family inherits."""

from __future__ import annotations

from coati_ext import Site

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
