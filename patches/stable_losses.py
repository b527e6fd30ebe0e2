"""Pairwise reward-model losses that are finite at any margin, and a default that exists.

``-log(sigmoid(d))`` and ``log(1 + exp(-d))`` overflow written out (at a margin of -18 and -12 in
fp16, -89 in fp32); upstream uses ``logsigmoid`` for the first since its third generation. The
trainer of G3 and G4 builds its default loss with an argument that the loss does not have.
"""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING, Any, Callable

from coati_ext import Defect, Patch, Site, hookimpl, tensors

if TYPE_CHECKING:
    from torch import Tensor


def forward(self: Any, chosen_reward: Tensor, reject_reward: Tensor) -> Tensor:
    """The pairwise loss of rewards (B,), a scalar."""
    return tensors.pairwise_loss(chosen_reward, reject_reward)


def default_loss(original: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """Construct the trainer with the loss that ``loss_fn=None`` means."""
    from coati.models import LogSigLoss

    call = signature(original).bind(*args, **kwargs)
    if call.arguments.get("loss_fn") is None:
        call.arguments["loss_fn"] = LogSigLoss()
    original(*call.args, **call.kwargs)


@hookimpl
def register_patches(register: Callable[[Patch], None]) -> None:
    """Declare the patch."""
    register(
        Patch(
            name="stable_losses",
            summary="pairwise losses finite at any margin; RewardModelTrainer(loss_fn=None) works",
            default=True,
            changes="None where upstream's losses are finite; half-precision losses come in fp32.",
            reference="ColossalAI #3490; arXiv 2203.02155, 2204.05862",
            sites=(
                Site(
                    "coati.models.loss:LogSigLoss.forward",
                    "coati_ext.patches.stable_losses:forward",
                    generations=("G1", "G2", "G3", "G4"),
                    fits={
                        "v0.2.8 .. v0.3.6": "8e4902ec-8f54c3a0-7db3cd13-ad40fa68-da918bfc",
                        "stand-in G1": "8e4902ec-908dfe43",
                    },
                    right={"v0.3.7": "8e4902ec-c94172d4", "stand-in G3": "8e4902ec-7c441bfb"},
                ),
                Site(
                    "coati.models.loss:LogExpLoss.forward",
                    "coati_ext.patches.stable_losses:forward",
                    generations=("G1", "G2", "G3", "G4"),
                    fits={
                        "v0.2.8 .. HEAD": "8e4902ec-e144d66d-da918bfc",
                        "stand-in": "8e4902ec-783f163a",
                    },
                ),
                Site(
                    "coati.trainer.rm:RewardModelTrainer.__init__",
                    "coati_ext.patches.stable_losses:default_loss",
                    generations=("G3", "G4"),
                    mode="wrap",
                    needs=("loss_fn", "LogSigLoss"),
                    fits={
                        "v0.3.7 .. v0.4.2": (
                            "7a0a8827-afeac720-c7e5231c-c06116cd-859546b3-d2c9c308-8c331677-"
                            "713ddb53-fbefcf24-82135226-259dc74f-05a5e82b"
                        ),
                        "v0.4.3 .. HEAD": (
                            "0e0d985c-a9fd2d27-c7e5231c-c06116cd-859546b3-d2c9c308-8c331677-"
                            "713ddb53-fbefcf24-82135226-259dc74f-05a5e82b"
                        ),
                        "stand-in": (
                            "0e0d985c-e795bdd5-c7e5231c-c06116cd-c078f392-d2c9c308-8c331677-"
                            "713ddb53-fbefcf24-82135226-259dc74f-05a5e82b"
                        ),
                    },
                ),
            ),
        )
    )


@hookimpl
def register_defects(register: Callable[[Defect], None]) -> None:
    """Declare what ``doctor --live`` measures."""
    for name, function, generations in (
        ("LogSigLoss", "measure_log_sig", ("G1", "G2")),
        ("LogExpLoss", "measure_log_exp", ("G1", "G2", "G3", "G4")),
    ):
        register(
            Defect(
                f"{name} overflows",
                "stable_losses",
                f"{name} at a margin of -200, fp32",
                generations,
                f"coati_ext.patches.stable_losses:{function}",
                right=200.0,
                tolerance=1e-3,
            )
        )
    register(
        Defect(
            "no default loss",
            "stable_losses",
            "RewardModelTrainer(loss_fn=None): losses missing",
            ("G3", "G4"),
            "coati_ext.patches.stable_losses:measure_default_loss",
        )
    )


def _at_wide_margin(loss: Any) -> float:
    import torch

    return float(loss(torch.tensor([-100.0]), torch.tensor([100.0])))


def measure_log_sig() -> float:
    """LogSigLoss at a margin of -200."""
    from coati.models import LogSigLoss

    return _at_wide_margin(LogSigLoss())


def measure_log_exp() -> float:
    """LogExpLoss at a margin of -200."""
    from coati.models import LogExpLoss

    return _at_wide_margin(LogExpLoss())


def measure_default_loss() -> float:
    """Construct the trainer without a loss; 1 if it has none afterwards."""
    from coati.trainer import RewardModelTrainer

    parameters = signature(RewardModelTrainer.__init__).parameters
    given = {
        name: None
        for name, item in parameters.items()
        if item.default is item.empty and name != "self"
    }
    return float(RewardModelTrainer(**given).loss_fn is None)
