"""Pairwise losses: finite at any margin, upstream's where upstream's are finite."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import coati_ext
from coati_ext.measure import measure
from coati_ext.plan import make_plan
from coati_ext.testing import cpu_only

LOSSES = ("LogSigLoss", "LogExpLoss")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def loss_of(name):
    import coati.models

    return getattr(coati.models, name)()


@pytest.fixture
def on(upstream):
    with coati_ext.applied():
        yield upstream


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("margin", [-6e4, -100.0, -18.0, -1.0, 0.0, 1.0, 100.0, 6e4])
@pytest.mark.parametrize("name", LOSSES)
def test_finite_with_finite_gradients_at_any_margin(on, name, margin, dtype):
    if dtype == torch.float16 and torch.__version__.startswith("1."):
        pytest.skip("torch 1.13 subtracts no float16 on a CPU")
    chosen = torch.tensor([margin, 0.5], dtype=dtype, requires_grad=True)
    rejected = torch.tensor([0.0, 0.5], dtype=dtype, requires_grad=True)
    loss = loss_of(name)(chosen, rejected)
    loss.backward()
    assert loss.isfinite()
    assert chosen.grad.isfinite().all()
    assert rejected.grad.isfinite().all()
    exact = (
        max(-margin, 0.0) + torch.log1p(torch.tensor(-abs(margin)).exp()).item() + 0.6931472
    ) / 2
    assert loss.item() == pytest.approx(exact, rel=2e-2 if dtype == torch.bfloat16 else 1e-3)
    assert chosen.grad[1].item() == pytest.approx(-0.25, rel=1e-2)  # half of -sigmoid(0)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.floats(-15, 15), st.floats(-15, 15)), min_size=1, max_size=6))
def test_equal_to_upstreams_where_upstreams_are_finite(upstream, pairs):
    chosen, rejected = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    for name in LOSSES:
        before = loss_of(name)(chosen, rejected)
        with coati_ext.applied():
            after = loss_of(name)(chosen, rejected)
        assert after.item() == pytest.approx(before.item(), rel=1e-9)
        assert after.dtype == before.dtype


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


def test_every_registered_defect_is_there_without_the_patches_and_gone_with_them(upstream):
    defects = [d for d in make_plan().registry.defects if upstream.generation in d.generations]
    assert {defect.patch for defect in defects} == {"eos_pooling", "left_padding", "stable_losses"}
    with cpu_only():
        before = [measure(defect) for defect in defects]
        with coati_ext.applied():
            after = [measure(defect) for defect in defects]
    assert [item["name"] for item in before if item["verdict"] == "right"] == []
    assert [item for item in after if item["verdict"] == "wrong"] == []
