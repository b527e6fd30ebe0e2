"""A reward for each action: the score once or on every action, less a penalty."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given

from coati_ext import tensors
from helpers.rollouts import EXACT, JUNK, rollouts


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
