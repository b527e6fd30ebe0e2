"""Losses that are finite with finite gradients, masked, and agreed upon by all ranks.

``-log(sigmoid(d))`` and ``log(1 + exp(-d))`` overflow written out (at a margin of -18 and -12 in
fp16, -89 in fp32); upstream uses ``logsigmoid`` for the first since its third generation. The
trainer of G3 and G4 builds its default loss with an argument that the loss does not have. PPO's
policy loss overflows at a log-ratio of 89, its value loss is nan without an action, or has no mask;
and whether a step of G3 and G4 is skipped is decided by each rank for itself, so that one can wait
forever for the backward of another.

Letters: B rows, A action columns.
"""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING, Any, Callable, Optional, Tuple

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


def policy_loss(
    self: Any,
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    action_mask: Optional[Tensor] = None,
) -> Tensor:
    """PPO's policy loss of log-probabilities (B, A), a scalar, for G1 and G2."""
    ratio, mask = tensors.policy_ratio(log_probs, old_log_probs, action_mask)
    return tensors.policy_loss(ratio, advantages, mask, self.clip_eps)


def policy_loss_or_skip(
    self: Any,
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    action_mask: Optional[Tensor] = None,
) -> Tuple[Tensor, bool, Tensor]:
    """PPO's policy loss, whether to skip the step, and the largest ratio, for G3 and G4.

    A step is skipped when the mean ratio of the real actions of all ranks is over the threshold.
    """
    import torch

    from coati_ext.rollout.ranks import total

    ratio, mask = tensors.policy_ratio(log_probs, old_log_probs, action_mask)
    real = ratio.detach().masked_fill(~mask, 0)
    summed, count = total(torch.stack([real.sum(), mask.sum().to(real.dtype)])).unbind()
    skip = bool(summed > self.skip_threshold * count)
    loss = tensors.policy_loss(ratio.clamp(0.0, 10.0), advantages, mask, self.clip_eps)
    return loss, skip, ratio.detach().max()


def value_loss(
    self: Any,
    values: Tensor,
    old_values: Tensor,
    advantage: Tensor,
    action_mask: Optional[Tensor] = None,
) -> Tensor:
    """PPO's value loss of values (B, A), a scalar, for G3 and G4."""
    returns = advantage + old_values
    return tensors.value_loss(values, old_values, returns, action_mask, self.clip_eps)


def value_loss_of_reward(
    original: Callable[..., Tensor],
    self: Any,
    values: Tensor,
    old_values: Tensor,
    reward: Tensor,
    action_mask: Optional[Tensor] = None,
) -> Tensor:
    """PPO's value loss for G1 and G2: upstream's of whole answers (B,), masked of tokens (B, A)."""
    if values.dim() == 1 or action_mask is None:
        return original(self, values, old_values, reward)
    return tensors.value_loss(values, old_values, reward, action_mask, self.clip_eps)


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
                    "coati.models.loss:PolicyLoss.forward",
                    "coati_ext.patches.stable_losses:policy_loss",
                    generations=("G1", "G2"),
                    fits={
                        "v0.2.8 .. v0.3.6": (
                            "be2a96fc-58ddfbdc-25d58b8a-81aa5a41-3c1f4d4f-dfea44b7-cca4d45d-"
                            "da918bfc"
                        ),
                        "stand-in": ("be2a96fc-49825241-cf8c3185-5295c365-dfea44b7-51878a32"),
                    },
                ),
                Site(
                    "coati.models.loss:PolicyLoss.forward",
                    "coati_ext.patches.stable_losses:policy_loss_or_skip",
                    generations=("G3", "G4"),
                    fits={
                        "v0.3.7 .. v0.4.2": (
                            "be2a96fc-d7333c3b-933abf0e-8ab689fe-94deced3-25d58b8a-81aa5a41-"
                            "3c1f4d4f-86c321b6-cca4d45d-b8609ba0"
                        ),
                        "v0.4.3 .. HEAD": (
                            "be2a96fc-d7333c3b-9465ede1-8ab689fe-94deced3-25d58b8a-81aa5a41-"
                            "3c1f4d4f-d149c4ae-cca4d45d-b8609ba0"
                        ),
                        "stand-in": (
                            "be2a96fc-665ff083-bae23d57-0bc47795-3a9c5606-cf8c3185-5295c365-"
                            "b0584a66-fc81d95b"
                        ),
                    },
                ),
                Site(
                    "coati.models.loss:ValueLoss.forward",
                    "coati_ext.patches.stable_losses:value_loss_of_reward",
                    generations=("G1", "G2"),
                    mode="wrap",
                    fits={
                        "v0.2.8": (
                            "6fbd36ac-4206093d-785420f2-51995cca-0db3aec1-cca4d45d-da918bfc"
                        ),
                        "v0.3.0 .. v0.3.6": (
                            "6fbd36ac-4206093d-785420f2-51995cca-0db3aec1-cca4d45d-257f9006"
                        ),
                        "stand-in": "6fbd36ac-09179d12-8e53045f-746fbc5e",
                    },
                ),
                Site(
                    "coati.models.loss:ValueLoss.forward",
                    "coati_ext.patches.stable_losses:value_loss",
                    generations=("G3", "G4"),
                    fits={
                        "v0.3.7 .. v0.4.2": (
                            "fc1082f3-ae93ed52-4206093d-4d524f52-2480abf8-aa9720e0-f906e6f7-"
                            "257f9006"
                        ),
                        "v0.4.3 .. HEAD": (
                            "fc1082f3-ae93ed52-4206093d-4d524f52-2480abf8-1e029ff9-257f9006"
                        ),
                        "stand-in": ("fc1082f3-ae93ed52-09179d12-60378c3f-16ffedf6-3f8e7aeb"),
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
    for name, summary, function, generations in (
        (
            "PolicyLoss gradient",
            "gradients of PolicyLoss that are not finite, of 3, at log-ratios to 200",
            "measure_policy_gradient",
            ("G1", "G2", "G3", "G4"),
        ),
        (
            "ValueLoss, no mask",
            "change of ValueLoss by a column that is no action",
            "measure_unmasked_value",
            ("G1", "G2"),
        ),
        (
            "ValueLoss, no action",
            "ValueLoss of rows without an action",
            "measure_empty_value",
            ("G3", "G4"),
        ),
    ):
        register(
            Defect(
                name,
                "stable_losses",
                summary,
                generations,
                f"coati_ext.patches.stable_losses:{function}",
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


def measure_policy_gradient() -> float:
    """How many of three gradients of the policy loss are not finite."""
    import torch
    from coati.models.loss import PolicyLoss

    log_probs = torch.tensor([[0.0, 0.1, 200.0]], requires_grad=True)
    old, advantages = torch.zeros(1, 3), torch.tensor([[1.0, 1.0, -1.0]])
    given = PolicyLoss()(log_probs, old, advantages, action_mask=torch.ones(1, 3))
    loss = given[0] if isinstance(given, tuple) else given
    (gradient,) = torch.autograd.grad(loss, log_probs)
    return float((~gradient.isfinite()).sum())


def measure_unmasked_value() -> float:
    """How much a value in a masked column changes the value loss of tokens."""
    import torch

    mask = torch.tensor([[True, True, False]])
    returns = torch.tensor([[0.5, 0.5, 0.0]])
    calm, wild = torch.tensor([[[0.1, 0.2, 0.0]], [[0.1, 0.2, 9.0]]])
    return abs(_value_loss(calm, returns, mask) - _value_loss(wild, returns, mask))


def measure_empty_value() -> float:
    """The value loss of rows in which no column is an action."""
    import torch

    return _value_loss(torch.ones(2, 3), torch.ones(2, 3), torch.zeros(2, 3, dtype=torch.bool))


def _value_loss(values: Any, target: Any, mask: Any) -> float:
    """Upstream's loss of values (B, A) that were 0; the target is reward or advantage."""
    import torch
    from coati.models.loss import ValueLoss

    return float(ValueLoss()(values, torch.zeros_like(values), target, action_mask=mask))
