"""What an answer is, how likely, and how far from its reference."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coati_ext import tensors


class TestKlEstimate:
    def test_k1_is_the_log_ratio(self):
        log_ratio = torch.randn(3, 4) * 30
        assert tensors.kl_estimate(log_ratio, "k1").equal(log_ratio)

    def test_an_estimator_may_be_named_in_a_file(self):
        (name,) = json.loads('["k1"]')  # equal to the word here, and not the same object
        log_ratio = torch.tensor([[-1.0]])
        assert tensors.kl_estimate(log_ratio, name).equal(log_ratio)

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
