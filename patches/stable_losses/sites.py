"""The sites: the losses, and the constructor of the reward trainer, which creates one of them."""

from __future__ import annotations

from coati_ext import Site

_OURS = "coati_ext.patches.stable_losses."

SITES = (
    Site(
        "coati.models.loss:LogSigLoss.forward",
        _OURS + "losses:pairwise_loss",
        generations=("G1", "G2", "G3", "G4"),
    ),
    Site(
        "coati.models.loss:LogExpLoss.forward",
        _OURS + "losses:pairwise_loss",
        generations=("G1", "G2", "G3", "G4"),
    ),
    Site(
        "coati.models.loss:PolicyLoss.forward",
        _OURS + "losses:policy_loss",
        generations=("G1", "G2"),
    ),
    Site(
        "coati.models.loss:PolicyLoss.forward",
        _OURS + "losses:policy_loss_or_skip",
        generations=("G3", "G4"),
    ),
    Site(
        "coati.models.loss:ValueLoss.forward",
        _OURS + "losses:value_loss_of_reward",
        generations=("G1", "G2"),
        mode="wrap",
    ),
    Site(
        "coati.models.loss:ValueLoss.forward",
        _OURS + "losses:value_loss",
        generations=("G3", "G4"),
    ),
    Site(
        "coati.trainer.rm:RewardModelTrainer.__init__",
        _OURS + "reward_trainer:default_loss",
        generations=("G3", "G4"),
        mode="wrap",
        needs=("loss_fn", "LogSigLoss"),
    ),
)
