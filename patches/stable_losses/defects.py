"""Defects of losses that ``doctor --live`` measures with the installed coati."""

from __future__ import annotations

from inspect import signature
from typing import Any, Tuple

from coati_ext import Defect


def _defect(
    name: str, summary: str, generations: Tuple[str, ...], measure: str, **expected: float
) -> Defect:
    where = f"{__name__}:{measure}"
    return Defect(name, "stable_losses", summary, generations, where, **expected)


DEFECTS = (
    *(
        _defect(
            f"{name} overflows",
            f"{name} at a margin of -200, fp32",
            generations,
            measure,
            right=200.0,
            tolerance=1e-3,
        )
        for name, measure, generations in (
            ("LogSigLoss", "measure_log_sig", ("G1", "G2")),
            ("LogExpLoss", "measure_log_exp", ("G1", "G2", "G3", "G4")),
        )
    ),
    _defect(
        "no default loss",
        "RewardModelTrainer(loss_fn=None): losses missing",
        ("G3", "G4"),
        "measure_default_loss",
    ),
    _defect(
        "PolicyLoss gradient",
        "gradients of PolicyLoss that are not finite, of 3, at log-ratios to 200",
        ("G1", "G2", "G3", "G4"),
        "measure_policy_gradient",
    ),
    _defect(
        "ValueLoss, no mask",
        "change of ValueLoss by a column that is no action",
        ("G1", "G2"),
        "measure_unmasked_value",
    ),
    _defect(
        "ValueLoss, no action",
        "ValueLoss of rows without an action",
        ("G3", "G4"),
        "measure_empty_value",
    ),
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
    """1 if a trainer constructed with ``loss_fn=None`` has no loss, else 0."""
    from coati.trainer import RewardModelTrainer

    parameters = signature(RewardModelTrainer.__init__).parameters
    given = {
        name: None
        for name, item in parameters.items()
        if item.default is item.empty and name != "self"
    }
    return float(RewardModelTrainer(**given).loss_fn is None)


def measure_policy_gradient() -> float:
    """The number of non-finite gradients of the policy loss, of three."""
    import torch
    from coati.models.loss import PolicyLoss

    log_probs = torch.tensor([[0.0, 0.1, 200.0]], requires_grad=True)
    old, advantages = torch.zeros(1, 3), torch.tensor([[1.0, 1.0, -1.0]])
    given = PolicyLoss()(log_probs, old, advantages, action_mask=torch.ones(1, 3))
    loss = given[0] if isinstance(given, tuple) else given
    (gradient,) = torch.autograd.grad(loss, log_probs)
    return float((~gradient.isfinite()).sum())


def measure_unmasked_value() -> float:
    """How much a value in a masked column changes the per-token value loss."""
    import torch

    mask = torch.tensor([[True, True, False]])
    returns = torch.tensor([[0.5, 0.5, 0.0]])
    calm, wild = torch.tensor([[[0.1, 0.2, 0.0]], [[0.1, 0.2, 9.0]]])
    return abs(_value_loss(calm, returns, mask) - _value_loss(wild, returns, mask))


def measure_empty_value() -> float:
    """The value loss of rows without a real action."""
    import torch

    return _value_loss(torch.ones(2, 3), torch.ones(2, 3), torch.zeros(2, 3, dtype=torch.bool))


def _value_loss(values: Any, target: Any, mask: Any) -> float:
    """The value loss of values (B, A) whose old values are 0; the target is reward or advantage."""
    import torch
    from coati.models.loss import ValueLoss

    return float(ValueLoss()(values, torch.zeros_like(values), target, action_mask=mask))
