"""Moments of rewards against numpy, however they are split, and the centring term."""

from __future__ import annotations

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coati_ext import tensors

NUMBERS = st.lists(st.floats(-1e4, 1e4, width=32), max_size=12)


def moments_of(parts):
    """Those of all parts, each of which a rank or a rollout has seen alone."""
    alone = [tensors.reward_moments(torch.tensor(part)) for part in parts]
    return tensors.combined_moments(torch.stack(alone))


@given(st.lists(NUMBERS, min_size=1, max_size=5))
def test_the_moments_of_parts_are_those_of_all_numbers(parts):
    everything = numpy.array([number for part in parts for number in part], dtype=numpy.float64)
    count, mean, squares = moments_of(parts).tolist()
    assert count == len(everything)
    expected = everything.mean() if len(everything) else 0
    assert mean == pytest.approx(expected, rel=1e-12, abs=1e-9)
    assert squares == pytest.approx(((everything - expected) ** 2).sum(), rel=1e-9, abs=1e-6)


@given(st.lists(NUMBERS, min_size=2, max_size=5))
def test_it_does_not_matter_what_is_combined_first(parts):
    *early, last = parts
    in_turn = torch.stack([moments_of(early), tensors.reward_moments(torch.tensor(last))])
    found = tensors.combined_moments(in_turn)
    assert torch.allclose(found, moments_of(parts), rtol=1e-9, atol=1e-6)


def test_nothing_is_lost_where_the_level_is_far_above_the_spread():
    """Sums of squares would have kept none of these digits."""
    rewards = 1e8 + torch.linspace(-1, 1, 101, dtype=torch.float64)
    parts = torch.stack([tensors.reward_moments(part) for part in rewards.split(7)])
    mean, spread = tensors.mean_and_spread(tensors.combined_moments(parts))
    assert float(mean) == pytest.approx(1e8, abs=1e-6)
    assert float(spread) == pytest.approx(rewards.numpy().std(), rel=1e-7)


def test_numbers_that_are_none_do_not_count():
    rewards = torch.tensor([1.0, float("nan"), 3.0, float("inf"), -float("inf")])
    assert tensors.reward_moments(rewards).tolist() == [2, 2, 2]
    nothing = tensors.reward_moments(rewards[1:2])
    assert tensors.combined_moments(torch.stack([nothing, nothing])).tolist() == [0, 0, 0]


@pytest.mark.parametrize("level", [0.0, -300.0, 0.1])
def test_equal_rewards_are_divided_by_one(level):
    rewards = torch.full((7,), level)
    whole = tensors.combined_moments(
        torch.stack([tensors.reward_moments(part) for part in rewards.split(3)])
    )
    scaled = tensors.scaled(rewards, *tensors.mean_and_spread(whole))
    assert scaled.abs().max() < 1e-6


def test_nothing_seen_yet_scales_nothing():
    rewards = torch.tensor([-3.0, 5.0])
    assert tensors.scaled(rewards, *tensors.mean_and_spread(torch.zeros(3).double())).equal(rewards)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_scaled_rewards_keep_their_dtype_and_lose_no_digit_on_the_way(dtype):
    rewards = torch.tensor([-312.0, -308.0, -296.5]).to(dtype)
    found = tensors.scaled(rewards, -304.25, 8.5)
    expected = (rewards.double().numpy() + 304.25) / 8.5
    assert found.dtype == dtype
    assert found.equal(torch.from_numpy(expected).to(dtype))


def test_the_centring_term_is_that_of_the_paper():
    chosen = torch.tensor([1.0, -2.0, 0.5], requires_grad=True)
    rejected = torch.tensor([0.5, 1.0, -0.5], requires_grad=True)
    loss = tensors.centring_loss(chosen, rejected)
    assert loss.item() == pytest.approx((1.5**2 + 1**2 + 0) / 3)
    loss.backward()
    both = (chosen + rejected).detach()
    assert chosen.grad.allclose(2 * both / 3)
    assert rejected.grad.allclose(2 * both / 3)


def test_the_centring_term_of_half_precision_is_finite():
    loss = tensors.centring_loss(*torch.full((2, 4), 300.0).half())
    assert loss.dtype == torch.float32
    assert loss == 600**2
