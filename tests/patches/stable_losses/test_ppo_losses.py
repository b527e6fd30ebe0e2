"""PPO's losses: finite whatever the ratio, blind to masked places, else upstream's to the digit."""

from __future__ import annotations

import itertools
import math
from functools import partial
from importlib import import_module

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import coati_ext

JUNK = [math.nan, math.inf, -math.inf, 1e30, -1e30]
OLD_TORCH = int(torch.__version__.split(".")[0]) < 2


def policy_loss(*given, home=None):
    """PolicyLoss: the loss, and for G3 and G4 whether to skip and the largest ratio.

    Args:
        given: its arguments.
        home: where it is taken from, by default from the coati in use.
    """
    loss = (home or import_module("coati.models.loss")).PolicyLoss()(*given)
    return loss if isinstance(loss, tuple) else (loss, None, None)


def value_loss(*given, home=None):
    return (home or import_module("coati.models.loss")).ValueLoss()(*given)


def takes_advantages(upstream):
    """Whether the value loss adds the old values to its third argument for the target."""
    return upstream.generation in ("G3", "G4")


def batch(seed, rows, actions, spread=1.0, dtype=torch.float64):
    """Three random tensors (B, A), the first with gradient, and a mask of one action at least."""
    draw = torch.Generator().manual_seed(seed)
    first, second, third = (
        (spread * torch.randn(rows, actions, generator=draw, dtype=torch.float64)).to(dtype)
        for _ in range(3)
    )
    count = torch.randint(1, actions + 1, (rows, 1), generator=draw)
    return first.requires_grad_(), second, third, torch.arange(actions) < count


def value_and_gradient(loss, first, *rest):
    first = first.detach().clone().requires_grad_()
    value = loss(first, *rest)
    value = value[0] if isinstance(value, tuple) else value
    value.backward()
    return value.detach(), first.grad


def assert_same(before, after, atol=1e-6, case=None):
    for one, other in zip(before, after):
        assert one.sub(other).abs().max() <= atol, case


shapes = {"seed": st.integers(0, 2**31), "rows": st.integers(1, 4), "actions": st.integers(1, 7)}


class TestPolicyLoss:
    @settings(max_examples=30)
    @given(spread=st.sampled_from([0.01, 0.3, 2.0]), **shapes)
    def test_is_upstreams_where_that_is_finite(self, before, seed, rows, actions, spread):
        given = batch(seed, rows, actions, spread)
        upstreams = value_and_gradient(partial(policy_loss, home=before), *given)
        assert_same(upstreams, value_and_gradient(policy_loss, *given))

    @settings(max_examples=15)
    @given(**shapes)
    def test_is_upstreams_with_one_advantage_of_the_whole_answer(self, before, seed, rows, actions):
        log_probs, old, advantages, mask = batch(seed, rows, actions)
        given = (log_probs, old, advantages[:, :1], mask)
        upstreams = value_and_gradient(partial(policy_loss, home=before), *given)
        assert_same(upstreams, value_and_gradient(policy_loss, *given))

    @pytest.mark.generations("G1", "G2")
    @pytest.mark.parametrize("columns", [(), (1,)], ids=["(B,)", "(B, 1)"])
    def test_takes_one_log_probability_a_row(self, before, columns):
        """Upstream's own test_loss does."""
        log_probs, old, advantages = (item[:, 0] for item in batch(2, 4, 3)[:3])
        given = (log_probs, old, advantages.view(4, *columns))
        upstreams = value_and_gradient(partial(policy_loss, home=before), *given)
        assert_same(upstreams, value_and_gradient(policy_loss, *given))

    @pytest.mark.parametrize("advantage", [1.0, -1.0])
    def test_is_finite_with_finite_gradients_at_any_ratio(self, on, advantage):
        for log_ratio in (-200.0, -89.0, 20.0, 89.0, 200.0):
            log_probs = torch.tensor([[log_ratio, 0.0], [0.1, 0.0]]) - 1.0
            old, advantages = torch.full((2, 2), -1.0), torch.full((2, 2), advantage)
            value, gradient = value_and_gradient(policy_loss, log_probs, old, advantages, None)
            assert value.isfinite(), log_ratio
            assert gradient.isfinite().all(), log_ratio
            # The ordinary actions are still learned from.
            assert gradient[1].abs().min() > 0, log_ratio

    @pytest.mark.parametrize("advantage", [1.0, -1.0])
    def test_that_of_unpatched_upstream_is_not(self, upstream, advantage):
        """D28."""
        log_probs = torch.tensor([[200.0, 0.0]])
        mask = torch.ones(1, 2)
        given = (log_probs, torch.zeros(1, 2), torch.full((1, 2), advantage), mask)
        value, gradient = value_and_gradient(policy_loss, *given)
        assert not (value.isfinite() and gradient.isfinite().all())

    @pytest.mark.parametrize("where", [0, 1, 2], ids=["new", "old", "advantage"])
    def test_does_not_see_what_is_masked(self, on, where):
        for junk, sign in itertools.product(JUNK, (1.0, -1.0)):
            *given, mask = batch(3, 4, 6, 0.3, torch.float32)
            given[2] = sign * given[2].abs()
            expected = value_and_gradient(policy_loss, *given, mask)
            with torch.no_grad():
                given[where] = given[where].masked_fill(~mask, junk)
            after = value_and_gradient(policy_loss, *given, mask)
            assert_same(expected, after, atol=0, case=(junk, sign))
            assert not after[1][~mask].any(), (junk, sign)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_of_half_precision_is_finite_and_close(self, on, dtype):
        if dtype == torch.float16 and OLD_TORCH:
            pytest.skip("torch 1.13 has no float16 arithmetic on a CPU")
        given = batch(5, 3, 6, 0.1)
        exact, slope = value_and_gradient(policy_loss, *given)
        *halves, mask = (item.to(dtype) if item.is_floating_point() else item for item in given)
        value, gradient = value_and_gradient(policy_loss, *halves, mask)
        assert value.dtype == torch.float32
        assert float(value) == pytest.approx(float(exact), abs=2e-3)  # bf16: 8 bits of 0.1
        assert gradient.dtype == dtype
        assert gradient.double().sub(slope).abs().max() < 2e-2
        with torch.no_grad():
            halves[0][0, 0] = 200.0  # far over what float16 can exponentiate
        value, gradient = value_and_gradient(policy_loss, *halves, mask)
        assert value.isfinite()
        assert gradient.isfinite().all()

    def test_of_a_batch_without_an_action_is_zero(self, on):
        *given, mask = batch(0, 2, 3)
        value, gradient = value_and_gradient(policy_loss, *given, torch.zeros_like(mask))
        assert value == 0
        assert not gradient.any()

    def test_of_a_row_without_an_action_is_zero_and_counts_as_a_row(self, on):
        *given, mask = batch(0, 2, 3)
        mask[1] = False
        whole = value_and_gradient(policy_loss, *given, mask)[0]
        first = value_and_gradient(policy_loss, *(item[:1] for item in given), mask[:1])[0]
        assert float(whole) == pytest.approx(float(first) / 2, abs=1e-12)

    def test_without_a_mask_every_column_is_an_action(self, on):
        *given, mask = batch(1, 3, 4)
        with_ones = value_and_gradient(policy_loss, *given, torch.ones_like(mask))
        assert_same(with_ones, value_and_gradient(policy_loss, *given, None), atol=0)
        assert_same(with_ones, value_and_gradient(policy_loss, *given), atol=0)

    def test_takes_a_mask_of_any_dtype(self, on):
        *given, mask = batch(1, 3, 4)
        expected = value_and_gradient(policy_loss, *given, mask)
        for dtype in (torch.int64, torch.float32, torch.uint8):
            after = value_and_gradient(policy_loss, *given, mask.to(dtype))
            assert_same(expected, after, atol=0, case=dtype)


@pytest.mark.generations("G3", "G4")
class TestSkipping:
    def skip(self, log_ratio, mask):
        log_ratio = torch.as_tensor(log_ratio)
        _, skip, largest = policy_loss(
            log_ratio, torch.zeros_like(log_ratio), torch.ones_like(log_ratio), mask
        )
        assert isinstance(skip, bool)
        return skip, float(largest)

    def one_action(self, log_ratio):
        """A row with one real action and seven columns of none."""
        ratios = torch.zeros(1, 8)
        ratios[0, 0] = log_ratio
        return ratios, torch.arange(8).unsqueeze(0) < 1

    def test_counts_only_real_actions(self, upstream):
        """D28: upstream counts each masked column as a ratio of one."""
        exploded = self.one_action(math.log(30.0))
        skip, largest = self.skip(*exploded)
        assert not skip
        assert largest == pytest.approx(30.0, rel=1e-5)
        with coati_ext.applied():
            skip, largest = self.skip(*exploded)
            assert skip
            assert largest == pytest.approx(30.0, rel=1e-5)

    def test_is_decided_at_the_threshold(self, on):
        assert not self.skip(*self.one_action(math.log(19.9)))[0]
        assert self.skip(*self.one_action(math.log(20.1)))[0]

    def test_does_not_see_what_is_masked(self, on):
        ratios, mask = self.one_action(0.0)
        ratios[~mask] = 70.0
        assert self.skip(ratios, mask) == (False, 1.0)

    def test_of_an_infinite_ratio(self, on):
        assert self.skip(*self.one_action(math.inf))[0]

    def test_of_no_action_at_all_is_not(self, on):
        ratios, mask = self.one_action(3.0)
        assert self.skip(ratios, torch.zeros_like(mask)) == (False, 1.0)

    @settings(max_examples=20)
    @given(spread=st.sampled_from([0.1, 2.0, 4.0]), **shapes)
    def test_is_upstreams_where_every_column_is_an_action(
        self, before, seed, rows, actions, spread
    ):
        log_probs, old, advantages, _ = batch(seed, rows, actions, spread)
        given = (log_probs.detach(), old, advantages, torch.ones_like(log_probs))
        _, skip, largest = policy_loss(*given, home=before)
        _, after, largest_after = policy_loss(*given)
        assert bool(skip) == after
        assert float(largest) == pytest.approx(float(largest_after), rel=1e-6)


class TestValueLoss:
    @settings(max_examples=30)
    @given(spread=st.sampled_from([0.1, 2.0]), **shapes)
    @pytest.mark.generations("G3", "G4")
    def test_is_upstreams_where_that_is_finite(self, before, seed, rows, actions, spread):
        given = batch(seed, rows, actions, spread)
        upstreams = value_and_gradient(partial(value_loss, home=before), *given)
        assert_same(upstreams, value_and_gradient(value_loss, *given))

    @settings(max_examples=30)
    @given(spread=st.sampled_from([0.1, 2.0]), seed=st.integers(0, 2**31), rows=st.integers(1, 6))
    @pytest.mark.generations("G1", "G2")
    def test_of_whole_answers_is_upstreams(self, before, seed, rows, spread):
        *given, mask = batch(seed, rows, 5, spread)
        columns = [item[:, 0] for item in given]
        upstreams = value_and_gradient(partial(value_loss, home=before), *columns)
        for more in ((), (mask,)):  # G1's trainer gives a mask (B, A) with values (B,)
            assert_same(upstreams, value_and_gradient(value_loss, *columns, *more), atol=0)

    @settings(max_examples=30)
    @given(spread=st.sampled_from([0.1, 2.0]), **shapes)
    @pytest.mark.generations("G1", "G2")
    def test_of_tokens_is_the_mean_over_real_actions(self, before, seed, rows, actions, spread):
        values, old, target, mask = batch(seed, rows, actions, spread)
        columns = [item.detach()[mask] for item in (values, old, target)]
        # Upstream's, of a flat batch.
        expected, slope = value_and_gradient(partial(value_loss, home=before), *columns)
        value, gradient = value_and_gradient(value_loss, values, old, target, mask)
        assert_same((expected, slope), (value, gradient[mask]))
        assert not gradient[~mask].any()

    def test_of_a_batch_without_an_action_is_zero(self, on):
        *given, mask = batch(0, 2, 3)
        value, gradient = value_and_gradient(value_loss, *given, torch.zeros_like(mask))
        assert value == 0
        assert not gradient.any()

    @pytest.mark.generations("G3", "G4")
    def test_that_of_unpatched_upstream_is_nan(self, upstream):
        """D28."""
        *given, mask = batch(0, 2, 3)
        assert value_loss(*given, torch.zeros_like(mask)).isnan()

    @pytest.mark.parametrize("where", [0, 1, 2], ids=["new", "old", "target"])
    def test_does_not_see_what_is_masked(self, on, where):
        for junk in JUNK:
            *given, mask = batch(3, 4, 6, 1.0, torch.float32)
            expected = value_and_gradient(value_loss, *given, mask)
            with torch.no_grad():
                given[where] = given[where].masked_fill(~mask, junk)
            after = value_and_gradient(value_loss, *given, mask)
            assert_same(expected, after, atol=0, case=junk)
            assert not after[1][~mask].any(), junk

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_of_half_precision_is_finite_and_close(self, on, dtype):
        if dtype == torch.float16 and OLD_TORCH:
            pytest.skip("torch 1.13 has no float16 arithmetic on a CPU")
        given = batch(5, 3, 6)
        exact, slope = value_and_gradient(value_loss, *given)
        *halves, mask = (item.to(dtype) if item.is_floating_point() else item for item in given)
        value, gradient = value_and_gradient(value_loss, *halves, mask)
        assert value.dtype == torch.float32
        assert float(value) == pytest.approx(float(exact), rel=2e-2)
        assert gradient.double().sub(slope).abs().max() < 2e-2
        with torch.no_grad():
            halves[0][0, 0] = 600.0  # its square is over float16's largest number
        value, gradient = value_and_gradient(value_loss, *halves, mask)
        assert value.isfinite()
        assert gradient.isfinite().all()

    def test_without_a_mask_every_column_is_an_action(self, on):
        *given, mask = batch(1, 3, 4)
        with_ones = value_and_gradient(value_loss, *given, torch.ones_like(mask))
        assert_same(with_ones, value_and_gradient(value_loss, *given, None), atol=1e-12)
        assert_same(with_ones, value_and_gradient(value_loss, *given), atol=1e-12)

    def test_moves_a_value_towards_its_target(self, on):
        values = torch.tensor([[1.0, 5.0]])
        third = torch.tensor([[3.0, 3.0]])
        target = third - values if takes_advantages(on) else third
        ones = torch.ones(1, 2)
        _, gradient = value_and_gradient(value_loss, values, values.clone(), target, ones)
        assert gradient.tolist() == [[-1.0, 1.0]]
