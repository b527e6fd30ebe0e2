"""Sums that curves are drawn of: they add up, and give what NumPy gives of all numbers."""

from __future__ import annotations

import math

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coati_ext import tensors
from coati_ext.tensors.metrics import BINS

PAIRS = st.lists(st.tuples(st.floats(-50, 50), st.floats(-50, 50)), min_size=3, max_size=20)


def joint(first, second, mask=None):
    return tensors.Joint(*tensors.joint_sums(first, second, mask).tolist())


def calibration_error(margin):
    return tensors.calibration_error(tensors.calibration_sums(margin).tolist())


class TestJoint:
    @settings(max_examples=50)
    @given(PAIRS, st.integers(0, 20))
    def test_parts_add_up_to_the_whole(self, pairs, cut):
        first, second = torch.tensor(pairs, dtype=torch.float64).unbind(1)
        parts = [
            tensors.joint_sums(first[part], second[part])
            for part in (slice(None, cut), slice(cut, None))
        ]
        whole = tensors.joint_sums(first, second)
        assert sum(parts).tolist() == pytest.approx(whole.tolist(), abs=1e-8)

    def test_they_give_what_numpy_gives(self):
        one, other = numpy.random.default_rng(0).normal(3, 2, (2, 100))
        found = joint(torch.from_numpy(one), torch.from_numpy(other))
        assert found.mean == pytest.approx(one.mean())
        assert found.mean_second == pytest.approx(other.mean())
        assert found.spread == pytest.approx(one.std())
        assert found.root_mean_square == pytest.approx(numpy.sqrt((one**2).mean()))
        assert found.correlation == pytest.approx(numpy.corrcoef(one, other)[0, 1])
        left = 1 - (other - one).var() / other.var()
        assert found.explained_variance == pytest.approx(left)

    def test_what_is_masked_may_be_anything(self):
        numbers = torch.tensor([[1.0, math.nan, 3.0], [math.inf, 5.0, -math.inf]])
        mask = numbers.isfinite()
        found = joint(numbers, numbers, mask)
        assert (found.number, found.mean) == (3, 3.0)
        assert found.explained_variance == pytest.approx(1)

    def test_a_small_spread_around_a_large_mean_is_seen(self):
        """Rewards from -300 to -10 were reported; float32 sums of squares would lose this."""
        rewards = -300 + 0.01 * torch.tensor([-1.0, 1.0]).double().repeat(50)
        assert joint(rewards, rewards).spread == pytest.approx(0.01, rel=1e-3)

    @pytest.mark.parametrize("numbers", [[], [2.0], [0.3, 0.3, 0.3]], ids=str)
    def test_too_few_numbers_give_nan_and_no_error(self, numbers):
        found = joint(torch.tensor(numbers), torch.tensor(numbers))
        assert math.isnan(found.correlation)
        assert math.isnan(found.explained_variance)
        assert math.isnan(found.mean) == (not numbers)

    def test_values_explain_all_a_constant_nothing_and_the_negative_less(self):
        returns = torch.tensor([1.0, -2.0, 4.0])
        assert joint(returns, returns).explained_variance == pytest.approx(1)
        assert joint(torch.full((3,), 9.0), returns).explained_variance == pytest.approx(0)
        assert joint(-returns, returns).explained_variance == pytest.approx(-3)


class TestCalibration:
    def test_it_is_the_definition(self):
        margin = torch.randn(200, generator=torch.Generator().manual_seed(0)) * 2 + 0.5
        sure, right = margin.abs().sigmoid().numpy(), (margin > 0).numpy()
        edges = numpy.linspace(0.5, 1, BINS + 1)
        bins = numpy.clip(numpy.digitize(sure, edges) - 1, 0, BINS - 1)
        expected = sum(
            (bins == place).mean() * abs(sure[bins == place].mean() - right[bins == place].mean())
            for place in set(bins)
        )
        assert calibration_error(margin) == pytest.approx(expected, abs=1e-6)

    def test_a_model_that_is_as_sure_as_it_is_right_has_none(self):
        draw = torch.Generator().manual_seed(0)
        size = 3 * torch.rand(20000, generator=draw)
        right = torch.rand(20000, generator=draw) < size.sigmoid()
        margin = torch.where(right, size, -size)
        assert calibration_error(margin) < 0.015
        assert calibration_error(4 * margin) > 0.1  # too sure
        assert calibration_error(margin / 4) > 0.1  # not sure enough

    @pytest.mark.parametrize("margin", [0.0, 1e4, -1e4])
    def test_the_ends(self, margin):
        expected = {0.0: 0.5, 1e4: 0.0, -1e4: 1.0}[margin]
        assert calibration_error(torch.full((3,), margin)) == pytest.approx(expected)

    def test_parts_add_up(self):
        margin = torch.randn(30)
        parts = tensors.calibration_sums(margin[:7]) + tensors.calibration_sums(margin[7:])
        whole = tensors.calibration_sums(margin)
        assert parts.tolist() == pytest.approx(whole.tolist())

    def test_without_a_pair_there_is_none(self):
        assert math.isnan(calibration_error(torch.zeros(0)))
