"""Pairwise losses and PPO's: finite at any margin, upstream's where upstream's are finite."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import coati_ext
from coati_ext.testing import cpu_only

LOSSES = ("LogSigLoss", "LogExpLoss")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def loss_of(name):
    import coati.models

    return getattr(coati.models, name)()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_finite_with_finite_gradients_at_any_margin(on, dtype):
    if dtype == torch.float16 and torch.__version__.startswith("1."):
        pytest.skip("torch 1.13 subtracts no float16 on a CPU")
    margins = (-6e4, -100.0, -18.0, -1.0, 0.0, 1.0, 100.0, 6e4)
    for case in itertools.product(LOSSES, margins):
        name, margin = case
        chosen = torch.tensor([margin, 0.5], dtype=dtype, requires_grad=True)
        rejected = torch.tensor([0.0, 0.5], dtype=dtype, requires_grad=True)
        loss = loss_of(name)(chosen, rejected)
        loss.backward()
        assert loss.isfinite(), case
        assert chosen.grad.isfinite().all(), case
        assert rejected.grad.isfinite().all(), case
        exact = max(-margin, 0.0) + torch.log1p(torch.tensor(-abs(margin)).exp()).item() + 0.6931472
        close = 2e-2 if dtype == torch.bfloat16 else 1e-3
        assert loss.item() == pytest.approx(exact / 2, rel=close), case
        half = -0.25  # of -sigmoid(0)
        assert chosen.grad[1].item() == pytest.approx(half, rel=1e-2), case


@settings(max_examples=30)
@given(st.lists(st.tuples(st.floats(-15, 15), st.floats(-15, 15)), min_size=1, max_size=6))
def test_equal_to_upstreams_where_upstreams_are_finite(before, pairs):
    chosen, rejected = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    for name in LOSSES:
        upstreams = getattr(before, name)()(chosen, rejected)
        ours = loss_of(name)(chosen, rejected)
        assert ours.item() == pytest.approx(upstreams.item(), rel=1e-9), name
        assert ours.dtype == upstreams.dtype


@pytest.mark.generations("G3", "G4")  # a required argument before
def test_the_trainer_has_a_default_loss(upstream):
    import inspect

    from coati.models import LogExpLoss, LogSigLoss
    from coati.trainer import RewardModelTrainer

    required = [
        name
        for name, item in inspect.signature(RewardModelTrainer).parameters.items()
        if item.default is item.empty
    ]

    def loss(**given):
        return RewardModelTrainer(**{**dict.fromkeys(required), **given}).loss_fn

    with cpu_only():
        with pytest.raises(TypeError, match="beta"):
            loss()
        with coati_ext.applied():
            assert isinstance(loss(), LogSigLoss)
            assert isinstance(loss(loss_fn=None), LogSigLoss)
            mine = LogExpLoss()
            assert loss(loss_fn=mine) is mine
            positional = RewardModelTrainer(*[None] * len(required), mine)
            assert positional.loss_fn is mine


def ppo_batch(dtype=torch.float32):
    """Log-probabilities (3, 5), old ones, advantages and a mask that leaves out four columns."""
    draw = torch.Generator().manual_seed(0)
    new, old, advantages = (torch.randn(3, 5, generator=draw, dtype=dtype) for _ in range(3))
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[0, 3:] = mask[2, 3:] = False
    return new.requires_grad_(), old, advantages, mask


def policy_loss(new, old, advantages, mask):
    """The loss alone, which G3 and G4 give with two more."""
    from coati.models.loss import PolicyLoss

    given = PolicyLoss()(new, old, advantages, action_mask=mask)
    return given[0] if isinstance(given, tuple) else given


def value_loss(values, old, target, mask):
    from coati.models.loss import ValueLoss

    return ValueLoss()(values, old, target, action_mask=mask)


def test_policy_loss_is_upstreams_where_upstreams_is_finite(upstream):
    given = ppo_batch(torch.float64)
    before = policy_loss(*given)
    with coati_ext.applied():
        after = policy_loss(*given)
    assert after.item() == pytest.approx(before.item(), rel=1e-7)  # upstream divides by n + 1e-8
    one, other = (torch.autograd.grad(loss, given[0])[0] for loss in (before, after))
    assert torch.allclose(one, other, rtol=1e-6, atol=0)


def test_policy_loss_is_finite_with_finite_gradients_at_any_ratio(on):
    for case in itertools.product((-1e4, -200.0, 89.0, 200.0, 1e4), (-1.0, 1.0)):
        log_ratio, sign = case
        new, old, advantages, mask = ppo_batch()
        with torch.no_grad():
            new[0, 0] = old[0, 0] + log_ratio
        advantages[0, 0] = sign
        loss = policy_loss(new, old, advantages, mask)
        (gradient,) = torch.autograd.grad(loss, new)
        assert loss.isfinite(), case
        assert gradient.isfinite().all(), case


def test_masked_columns_change_no_ppo_loss(on):
    for junk in (float("inf"), float("-inf"), float("nan"), 1e9):
        new, old, advantages, mask = ppo_batch()
        spoilt = [item.detach().masked_fill(~mask, junk) for item in (new, old, advantages)]
        assert policy_loss(*spoilt, mask) == policy_loss(new, old, advantages, mask), junk
        assert value_loss(*spoilt, mask) == value_loss(new, old, advantages, mask), junk


def test_upstreams_policy_loss_has_gradients_that_are_not_finite(upstream):
    new, old, advantages, mask = ppo_batch()
    with torch.no_grad():
        new[0, 0] = old[0, 0] + 200
    advantages[0, 0] = -1.0
    (gradient,) = torch.autograd.grad(policy_loss(new, old, advantages, mask), new)
    assert not gradient.isfinite().all()


def test_value_loss_is_upstreams_where_upstreams_is_right(upstream):
    values, old, target, mask = ppo_batch(torch.float64)
    if upstream.generation in ("G1", "G2"):  # of whole answers
        values, old, target = (item[:, 0] for item in (values, old, target))
    before = value_loss(values, old, target, mask)
    with coati_ext.applied():
        after = value_loss(values, old, target, mask)
    assert after.item() == pytest.approx(before.item(), rel=1e-9)


def test_value_loss_of_nothing_is_nothing(on):
    values, old, target, mask = ppo_batch()
    loss = value_loss(values, old, target, torch.zeros_like(mask))
    (gradient,) = torch.autograd.grad(loss, values)
    assert loss == 0
    assert (gradient == 0).all()


@pytest.mark.generations("G3", "G4")
def test_a_step_is_skipped_by_the_mean_ratio_of_the_actions(upstream):
    """Upstream counts masked columns as ratios of 1, which dilutes the mean."""
    from coati.models.loss import PolicyLoss

    old = torch.zeros(1, 4)
    new = torch.tensor([[3.5, 0.0, 0.0, 0.0]])  # a ratio of 33, over the threshold of 20
    mask = torch.tensor([[True, False, False, False]])
    skips = []
    for config in ({"stable_losses": {"enabled": False}}, {}):
        with coati_ext.applied(config):
            _, skip, largest = PolicyLoss()(new, old, torch.ones(1, 4), action_mask=mask)
            skips.append(skip)
            assert largest.item() == pytest.approx(33.1, rel=1e-2)
    assert skips == [False, True]
