"""The sites: the losses, and the constructor of the reward trainer, which creates one of them."""

from __future__ import annotations

from coati_ext import Reliance, Site

_OURS = "coati_ext.patches.stable_losses."
_ALL = ("G1", "G2", "G3", "G4")

SITES = (
    Site(
        "coati.models.loss:LogSigLoss.forward",
        _OURS + "losses:pairwise_loss",
        generations=_ALL,
    ),
    Site(
        "coati.models.loss:LogExpLoss.forward",
        _OURS + "losses:pairwise_loss",
        generations=_ALL,
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
    *(
        Site(
            f"coati.trainer.rm:RewardModelTrainer.{name}",
            _OURS + "reward_trainer:" + ours,
            generations=generations,
            mode="wrap",
            takes=("self",),
            optional="G1" in generations,
        )
        for name, ours, generations in (
            ("fit", "tell_of_steps", ("G1",)),  # of its own before v0.3.1
            ("eval_acc", "tell_of_evaluation", ("G1",)),
            ("_train", "tell_of_steps", ("G1",)),
            ("_train", "tell_of_steps", ("G2", "G3", "G4")),
            ("_eval", "tell_of_evaluation", ("G1",)),
            ("_eval", "tell_of_evaluation", ("G2", "G3", "G4")),
        )
    ),
)

_PAIR = "gives the loss the rewards of the chosen answers and then those of the rejected ones"
_SETTINGS = "keeps what the loss is clipped to"

RELIES = (
    Reliance(
        "coati.trainer.rm:RewardModelTrainer._train",
        ("G1",),
        why=_PAIR,
        refuse=True,
        optional=True,
    ),
    Reliance(
        "coati.trainer.rm:RewardModelTrainer.fit",  # the same, before v0.3.1
        ("G1",),
        why=_PAIR,
        refuse=True,
        optional=True,
    ),
    Reliance(
        "coati.trainer.rm:RewardModelTrainer._train",
        ("G2", "G3", "G4"),
        why=_PAIR,
        refuse=True,
    ),
    Reliance(
        "coati.trainer.rm:RewardModelTrainer._eval",
        ("G1",),
        why="measures the reward model",
        optional=True,
    ),
    Reliance(
        "coati.trainer.rm:RewardModelTrainer.eval_acc",  # the same, before v0.3.1
        ("G1",),
        why="measures the reward model",
        optional=True,
    ),
    Reliance(
        "coati.trainer.rm:RewardModelTrainer._eval",
        ("G2", "G3", "G4"),
        why="measures the reward model",
    ),
    Reliance("coati.models.loss:PolicyLoss.__init__", _ALL, why=_SETTINGS),
    Reliance("coati.models.loss:ValueLoss.__init__", _ALL, why=_SETTINGS),
)
