"""The sums of PPO and GRPO as pure functions of tensors, against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from test_frame import HostReads

from coati_ext import tensors

JUNK = [math.nan, math.inf, -math.inf, 1e30]
EXACT = 1e-12  # float64, numbers up to ten
OLD_TORCH = int(torch.__version__.split(".")[0]) < 2


@st.composite
def rollouts(draw, min_actions=0):
    """Values and rewards (B, A) in float64, the mask, and how many actions each row has."""
    rows, width = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    numbers = st_numpy.arrays(np.float64, (rows, width), elements=st.floats(-10, 10, width=32))
    counts = st.lists(st.integers(min(min_actions, width), width), min_size=rows, max_size=rows)
    values, rewards, counts = draw(numbers), draw(numbers), draw(counts)
    mask = torch.arange(width) < torch.tensor(counts).unsqueeze(1)
    return torch.from_numpy(values), torch.from_numpy(rewards), mask


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


class TestRewards:
    @given(rollouts())
    def test_the_score_lands_once_on_the_last_action(self, rollout):
        penalty, scores, mask = rollout
        score = scores[:, 0]
        got = tensors.terminal_reward(score, penalty, mask)
        for row in range(len(mask)):
            count = int(mask[row].sum())
            expected = -penalty[row].clone()
            expected[count:] = 0
            if count:
                expected[count - 1] += score[row]
            assert got[row].sub(expected).abs().max() <= EXACT

    @given(rollouts())
    def test_or_on_every_action(self, rollout):
        penalty, scores, mask = rollout
        got = tensors.every_token_reward(scores[:, 0], penalty, mask)
        expected = (scores[:, :1] - penalty).masked_fill(~mask, 0)
        assert got.equal(expected)

    @pytest.mark.parametrize("place", ["terminal_reward", "every_token_reward"])
    @pytest.mark.parametrize("junk", JUNK)
    def test_do_not_see_what_is_masked(self, junk, place):
        score, penalty = torch.tensor([0.5, -1.0, 2.0]), torch.randn(3, 4)
        mask = torch.arange(4) < torch.tensor([[4], [2], [0]])
        reward = getattr(tensors, place)
        filled = reward(score, penalty.masked_fill(~mask, junk), mask)
        assert filled.equal(reward(score, penalty, mask))


class TestKlEstimate:
    def test_k1_is_the_log_ratio(self):
        log_ratio = torch.randn(3, 4) * 30
        assert tensors.kl_estimate(log_ratio, "k1").equal(log_ratio)

    @given(st.floats(-2, 2))
    def test_k3_is_its_definition(self, x):
        got = tensors.kl_estimate(torch.tensor(x, dtype=torch.float64), "k3")
        assert float(got) == pytest.approx(math.exp(-x) - 1 + x, abs=1e-12)

    def test_k3_is_never_negative_and_bounded(self):
        """D13, D14: upstream's goes negative in G3 and G4 and to infinity in G1 and G2."""
        log_ratio = torch.tensor([1.0, -1.0, -29.0, 19.0, -89.0, 200.0, -200.0, 0.0])
        got = tensors.kl_estimate(log_ratio, "k3")
        assert (got >= 0).all()
        assert (got <= 10).all()
        assert got[:2].sub(torch.tensor([math.exp(-1), math.e - 2])).abs().max() <= 1e-6
        assert got[-1] == 0

    def test_k3_of_a_small_ratio_keeps_its_digits(self):
        assert float(tensors.kl_estimate(torch.tensor(1e-3), "k3")) == pytest.approx(5e-7, rel=0.1)


def naive_answer(row, width, stops):
    """(actions, ended) of one row of ids, token by token as a sampler sees them."""
    for end in range(width + 1, len(row) + 1):
        if any(end >= len(stop) and row[end - len(stop) : end] == list(stop) for stop in stops):
            return end - width, True
    return len(row) - width, False


class TestAnswerMask:
    @settings(max_examples=200)
    @given(
        st.data(),
        st.integers(1, 4),
        st.integers(1, 8),
        st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3), max_size=3),
    )
    def test_is_what_a_loop_over_tokens_finds(self, data, width, actions, stops):
        columns = st.lists(st.integers(0, 2), min_size=width + actions, max_size=width + actions)
        rows = data.draw(st.lists(columns, min_size=1, max_size=3))
        mask, ended = tensors.answer_mask(torch.tensor(rows), width, stops)
        for row, got, done in zip(rows, mask.tolist(), ended.tolist()):
            count, stopped = naive_answer(row, width, stops)
            assert got == [column < count for column in range(actions)]
            assert done == stopped

    @pytest.mark.parametrize(
        ("stops", "count", "ended"),
        [
            ([], 5, False),
            ([[2]], 3, True),
            ([[7, 8]], 2, True),
            ([[7, 8], [2]], 2, True),  # alternatives: the first to end
            ([[2], [9, 9]], 3, True),
            ([[5, 7]], 1, True),  # begins in the prompt
            ([[1, 5]], 5, False),  # stands in the prompt
            ([[8, 7]], 5, False),
            ([[1, 5, 7, 8, 2, 6, 6, 6]], 5, False),  # longer than the row
        ],
    )
    def test_of_an_example_by_hand(self, stops, count, ended):
        row = torch.tensor([[1, 5, 7, 8, 2, 6, 2]])
        mask, done = tensors.answer_mask(row, 2, stops)
        assert mask.sum() == count
        assert mask[0, :count].all()
        assert done.item() == ended


class TestSelectedLogProbs:
    @pytest.mark.parametrize("scale", [1.0, 100.0])
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
    def test_is_log_softmax_at_the_token(self, dtype, scale):
        torch.manual_seed(0)
        logits = (scale * torch.randn(2, 3, 50)).to(dtype)
        ids = torch.randint(50, (2, 3))
        expected = logits.double().log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
        got = tensors.selected_log_probs(logits, ids)
        assert got.dtype == dtype
        assert got.shape == (2, 3)
        close = 1e-10 if dtype == torch.float64 else 3e-7 * scale + 1e-6
        assert got.double().sub(expected).abs().max() <= close

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_widens_half_precision_first(self, dtype):
        logits = torch.randn(2, 3, 50).to(dtype)
        ids = torch.randint(50, (2, 3))
        got = tensors.selected_log_probs(logits, ids)
        assert got.dtype == torch.float32
        assert got.equal(tensors.selected_log_probs(logits.float(), ids))

    def test_is_the_log_probability_of_minus_infinity_too(self):
        logits = torch.tensor([[[0.0, -math.inf, 0.0]]])
        assert tensors.selected_log_probs(logits, torch.tensor([[1]])).item() == -math.inf
        assert tensors.selected_log_probs(logits, torch.tensor([[0]])).item() == pytest.approx(
            -math.log(2)
        )

    def test_has_the_gradient_of_log_softmax(self):
        logits = torch.randn(2, 3, 9, dtype=torch.float64, requires_grad=True)
        ids = torch.randint(9, (2, 3))
        assert torch.autograd.gradcheck(lambda x: tensors.selected_log_probs(x, ids), (logits,))


class TestColumns:
    def test_trimmed_drops_the_columns_that_are_padding_in_every_row(self):
        ids = torch.tensor([[0, 0, 5, 6], [0, 4, 0, 6]])
        mask = torch.tensor([[False, False, True, True], [False, True, True, True]])
        got, real = tensors.trimmed(ids, mask)
        assert got.tolist() == [[0, 5, 6], [4, 0, 6]]
        assert real.equal(mask[:, 1:])

    def test_trimmed_keeps_a_full_batch(self):
        ids = torch.tensor([[3, 4], [5, 6]])
        got, real = tensors.trimmed(ids, torch.ones(2, 2, dtype=torch.bool))
        assert got.equal(ids)
        assert real.all()

    @pytest.mark.parametrize(
        ("row", "real"),
        [
            ([0, 0, 5, 6], [0, 0, 1, 1]),
            ([5, 6, 0, 0], [1, 1, 0, 0]),
            ([0, 5, 0, 6, 0], [0, 1, 1, 1, 0]),  # a pad inside is a sampled or a separating one
            ([5, 6], [1, 1]),
            ([0, 0], [0, 0]),
        ],
    )
    def test_without_outer_pads_takes_the_two_ends_off(self, row, real):
        assert tensors.without_outer_pads(torch.tensor([row]), 0).long().tolist() == [real]

    def test_without_a_pad_token_every_token_is_real(self):
        assert tensors.without_outer_pads(torch.tensor([[0, 1]]), None).all()


def test_nothing_is_read_back_to_the_host():
    torch.manual_seed(0)
    values, rewards = torch.randn(2, 3, 5)
    mask = torch.arange(5) < torch.tensor([[5], [2], [0]])
    ids = torch.randint(9, (3, 7))
    with HostReads() as reads:
        tensors.gae(values, rewards, mask, 0.9, 0.9)
        tensors.sequence_advantage(values, rewards, mask)
        tensors.group_advantage(values[:, 0], rewards[:, 0], 3, 0.1)
        tensors.whitened(values, mask, tensors.moments(values, mask))
        tensors.terminal_reward(values[:, 0], rewards, mask)
        tensors.every_token_reward(values[:, 0], rewards, mask)
        tensors.kl_estimate(values, "k3")
        tensors.answer_mask(ids, 2, [[3], [4, 5]])
        tensors.selected_log_probs(torch.randn(3, 5, 9), ids[:, 2:])
        tensors.without_outer_pads(ids, 0)
        tensors.policy_loss(*tensors.policy_ratio(values, rewards, mask)[:1], values, mask, 0.2)
        tensors.value_loss(values, rewards, values, mask, 0.2)
        tensors.trimmed(ids, torch.ones_like(ids, dtype=torch.bool))  # one on CUDA, none here
    assert reads.seen == []
