"""Advantages, and how they are scaled, against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coati_ext import tensors
from helpers.rollouts import EXACT, JUNK, rollouts


def defined_gae(values, rewards, mask, gamma, lam):
    """Equation 16 of arXiv 1506.02438, one action after the other."""
    advantages = np.zeros(values.shape)
    for row in range(len(values)):
        count = int(mask[row].sum())
        v, r = values[row].numpy(), rewards[row].numpy()
        for t in range(count):
            for later in range(t, count):
                after = v[later + 1] if later + 1 < count else 0.0
                residual = r[later] + gamma * after - v[later]
                advantages[row, t] += (gamma * lam) ** (later - t) * residual
    return torch.from_numpy(advantages)


class TestGae:
    @given(rollouts(), st.floats(0, 1), st.floats(0, 1))
    def test_is_its_definition(self, rollout, gamma, lam):
        defined = defined_gae(*rollout, gamma, lam)
        assert tensors.gae(*rollout, gamma, lam).sub(defined).abs().max() <= 100 * EXACT

    @given(rollouts(), st.floats(0, 1), st.floats(0, 1))
    def test_in_float32_is_its_definition_to_rounding(self, rollout, gamma, lam):
        values, rewards, mask = rollout
        got = tensors.gae(values.float(), rewards.float(), mask, gamma, lam)
        assert got.dtype == torch.float32
        defined = defined_gae(*rollout, gamma, lam)
        assert got.double().sub(defined).abs().max() <= 2e-5 * max(1.0, float(defined.abs().max()))

    def test_of_an_example_by_hand(self):
        values = torch.tensor([[1.0, 2.0, 4.0, 9.0]])
        rewards = torch.tensor([[0.0, 1.0, 10.0, 9.0]])
        mask = torch.tensor([[True, True, True, False]])
        # Residuals with gamma 1/2: 0 + 1 - 1, 1 + 2 - 2, 10 - 4; their weights are 1/4 apart.
        expected = torch.tensor([[0 + 1 / 4 + 6 / 16, 1 + 6 / 4, 6.0, 0.0]])
        assert tensors.gae(values, rewards, mask, 0.5, 0.5).equal(expected)

    @given(rollouts())
    def test_with_both_at_one_is_the_return_less_the_value(self, rollout):
        values, rewards, mask = rollout
        gained = rewards.masked_fill(~mask, 0).flip(1).cumsum(dim=1).flip(1) - values
        expected = gained.masked_fill(~mask, 0)
        assert tensors.gae(values, rewards, mask, 1.0, 1.0).sub(expected).abs().max() <= 100 * EXACT

    @given(rollouts(), st.floats(0, 1))
    def test_with_lambda_zero_is_the_residual(self, rollout, gamma):
        values, rewards, mask = rollout
        values = values.masked_fill(~mask, 0)
        after = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
        expected = (rewards + gamma * after - values).masked_fill(~mask, 0)
        assert tensors.gae(values, rewards, mask, gamma, 0.0).sub(expected).abs().max() <= EXACT

    @given(rollouts(), st.sampled_from(JUNK), st.floats(0, 1))
    def test_does_not_see_what_is_masked(self, rollout, junk, lam):
        values, rewards, mask = rollout
        expected = tensors.gae(values, rewards, mask, 0.9, lam)
        filled = (item.masked_fill(~mask, junk) for item in (values, rewards))
        assert tensors.gae(*filled, mask, 0.9, lam).equal(expected)
        assert not expected[~mask].any()

    @pytest.mark.parametrize("width", [1, 2, 3, 7, 8, 9, 31, 64, 65])
    def test_of_any_width(self, width):
        torch.manual_seed(width)
        values, rewards = torch.randn(2, 3, width, dtype=torch.float64)
        mask = torch.arange(width) < torch.tensor([[width], [width // 2], [0]])
        defined = defined_gae(values, rewards, mask, 0.99, 0.95)
        assert tensors.gae(values, rewards, mask, 0.99, 0.95).sub(defined).abs().max() <= 1e-11

    def test_of_a_terminal_reward_does_not_depend_on_the_tokens_that_remain(self):
        """With values and lambda of one, each action gets the whole score."""
        for width in (1, 5, 40):
            mask = torch.ones(1, width, dtype=torch.bool)
            rewards = tensors.terminal_reward(torch.tensor([0.7]), torch.zeros(1, width), mask)
            advantages = tensors.gae(torch.zeros(1, width), rewards, mask, 1.0, 1.0)
            assert advantages.sub(0.7).abs().max() <= 1e-6


class TestSequenceAdvantage:
    @given(rollouts())
    def test_is_the_sum_of_rewards_less_the_first_value(self, rollout):
        values, rewards, mask = rollout
        got = tensors.sequence_advantage(values, rewards, mask)
        for row in range(len(values)):
            count = int(mask[row].sum())
            gained = rewards[row, :count].sum() - values[row, 0]
            assert got[row, :count].sub(gained).abs().le(EXACT).all()
            assert not got[row, count:].any()

    @pytest.mark.parametrize("junk", JUNK)
    def test_does_not_see_what_is_masked(self, junk):
        values, rewards = torch.randn(2, 3, 4)
        mask = torch.arange(4) < torch.tensor([[4], [2], [0]])
        expected = tensors.sequence_advantage(values, rewards, mask)
        filled = (item.masked_fill(~mask, junk) for item in (values, rewards))
        assert tensors.sequence_advantage(*filled, mask).equal(expected)


class TestGroupAdvantage:
    def test_of_an_example_by_hand(self):
        score = torch.tensor([1.0, 3.0, 7.0, 7.0], dtype=torch.float64)
        kl = torch.tensor([0.5, 0.5, 0.0, 2.0], dtype=torch.float64)
        got = tensors.group_advantage(score, kl, 2, 0.1)
        half = 1 / (math.sqrt(2) + 1e-4)  # 1 and 3 have mean 2 and deviation sqrt(2)
        expected = torch.tensor([-half, half, 0.1, -0.1], dtype=torch.float64)
        assert got.sub(expected).abs().max() <= EXACT

    def test_of_equal_scores_is_the_centred_penalty_however_small(self):
        """D33: noise of the penalty is not blown up to the size of a signal."""
        score, kl = torch.full((4,), 2.5), 1e-3 * torch.tensor([1.0, 2.0, 3.0, 6.0])
        got = tensors.group_advantage(score, kl, 4, 0.05)
        assert got.sub(0.05 * (kl.mean() - kl)).abs().max() <= 1e-7
        assert not tensors.group_advantage(score, torch.zeros(4), 4, 0.05).any()

    @given(st.integers(0, 2**31), st.floats(-100, 100))
    def test_sums_to_zero_and_ignores_a_constant(self, seed, constant):
        draw = torch.Generator().manual_seed(seed)
        score, kl = torch.randn(2, 6, generator=draw, dtype=torch.float64)
        got = tensors.group_advantage(score, kl, 3, 0.1)
        assert got.view(-1, 3).sum(dim=1).abs().max() <= 1e-9
        moved = tensors.group_advantage(score + constant, kl + constant, 3, 0.1)
        assert moved.sub(got).abs().max() <= 1e-8

    def test_groups_do_not_mix(self):
        score, kl = torch.randn(2, 6)
        other = torch.cat([score[:3], torch.randn(3)])
        one, two = (tensors.group_advantage(each, kl, 3, 0.1) for each in (score, other))
        assert one[:3].equal(two[:3])


def whitened(values, mask):
    return tensors.whitened(values, mask, tensors.moments(values, mask))


class TestWhitened:
    @given(rollouts())
    def test_has_mean_zero_and_deviation_one_over_real_actions(self, rollout):
        values, _, mask = rollout
        got = whitened(values, mask)
        assert got.isfinite().all()
        assert not got[~mask].any()
        real = got[mask]
        if values[mask].numel() and values[mask].std(unbiased=False) > 1e-2:
            assert abs(float(real.mean())) <= 1e-9
            assert abs(float(real.std(unbiased=False)) - 1) <= 1e-5

    @given(rollouts(), st.floats(-5, 5))
    def test_ignores_a_constant(self, rollout, constant):
        values, _, mask = rollout
        if values[mask].numel() and values[mask].std(unbiased=False) > 1e-2:
            assert whitened(values + constant, mask).sub(whitened(values, mask)).abs().max() <= 1e-5

    @pytest.mark.parametrize("junk", JUNK)
    def test_does_not_see_what_is_masked(self, junk):
        values = torch.randn(3, 4)
        mask = torch.arange(4) < torch.tensor([[4], [2], [0]])
        assert whitened(values.masked_fill(~mask, junk), mask).equal(whitened(values, mask))

    def test_of_equal_values_or_of_none_is_zero(self):
        values = torch.full((2, 3), 0.3)
        assert whitened(values, torch.ones(2, 3, dtype=torch.bool)).abs().max() <= 1e-3
        assert whitened(values, torch.zeros(2, 3, dtype=torch.bool)).equal(torch.zeros(2, 3))

    def test_moments_of_parts_add_up(self):
        values, mask = torch.randn(4, 5), torch.rand(4, 5) > 0.5
        parts = sum(tensors.moments(values[i : i + 2], mask[i : i + 2]) for i in (0, 2))
        assert parts.sub(tensors.moments(values, mask)).abs().max() <= EXACT
        apart = [tensors.whitened(values[i : i + 2], mask[i : i + 2], parts) for i in (0, 2)]
        assert torch.cat(apart).sub(whitened(values, mask)).abs().max() <= 1e-6

    @pytest.mark.parametrize("value", [0.1, 0.3, 0.7, 1.1, 2.3, -3.7, 1000.1])
    @pytest.mark.parametrize("count", [3, 6, 7, 9])
    def test_of_equal_values_is_finite_though_their_variance_rounds_below_zero(self, value, count):
        values = torch.full((1, count), value, dtype=torch.float64)
        got = whitened(values, torch.ones(1, count, dtype=torch.bool))
        assert got.abs().max() <= 1e-2
