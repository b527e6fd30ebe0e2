"""The parts of the demo: its task, what it is that is measured, and the words for it."""

from __future__ import annotations

import random

import pytest
import torch

import coati_ext
from coati_ext.demo import policy, reward
from coati_ext.demo.summary import summary, verdicts
from coati_ext.demo.task import ANSWER, Brevity, pairs, quality
from coati_ext.testing import tiny_tokenizer
from coati_ext.testing.preferences import TURN


def test_the_rule_counts_words_and_nothing_else():
    tokenizer = tiny_tokenizer()
    rule = Brevity(tokenizer.convert_tokens_to_ids(TURN), 4)
    texts = [
        f"<pad> word1 {TURN} good1 bad2 word3 <eos> <pad>",
        f"word1 word2 {TURN} <eos> <pad> <pad> <pad> <pad>",
    ]
    ids = torch.tensor([tokenizer(text)["input_ids"] for text in texts])
    expected = torch.tensor([1 - 3 / ANSWER, 1.0])
    for given in ({"input_ids": ids, "response_start": [3, 3]}, {"sequences": ids}, {"ids": ids}):
        torch.testing.assert_close(rule(**given), expected)


def test_most_pairs_are_the_right_way_round():
    both = [
        [it[name].split() for name in ("chosen", "rejected")] for it in pairs(500, random.Random(0))
    ]
    right = sum(quality(chosen) >= quality(rejected) for chosen, rejected in both)
    assert 0.85 < right / 500 < 0.95


@pytest.mark.enough("G2", "G4", why="the two kinds of data, makers and trainers")
def test_scores_and_values(upstream):
    """Patches off, the same row has several scores and a value moves (G4); on, it does not."""
    runs = {}
    for state in ("off", "on"):
        if state == "on":
            coati_ext.enable()
        steps = []
        learnt = policy.learn("gpt2", 0, 1, lambda steps=steps: steps.append(1))
        assert len(steps) == len(learnt["words"]) == 2
        runs[state] = {"reward": reward.measure("gpt2", 0, 64), "policy": [learnt]}
    off, on = (summary(runs[state]) for state in ("off", "on"))
    assert off["moved"] > 0.1
    assert off["differs"] > 0.1
    assert max(on["moved"], on["differs"], on["value_moved"]) <= 1e-5
    if upstream.generation == "G4":
        assert off["value_moved"] > 0.1
    lines = runs["on"]["reward"]["by_pads"]
    assert max(max(line) - min(line) for line in lines) <= 1e-5


def run(words, in_ppo=((1.0,), (0.0,))):
    values = {"old": [0.0, 1.0], "new": [0.0, 1.5], "clip": 0.2}
    scored = {"trained": [[1.0], [0.0]], "in_ppo": in_ppo, "spread": 2.0, "moves": [1.0, 3.0]}
    return {"reward": scored, "policy": [{"words": words, "values": values}]}


def test_figures():
    found = summary(run([12.0, 15.0, 20.0], in_ppo=((0.5,), (0.75,))))
    assert found == {
        "moved": 1.5,
        "differs": 0.375,
        "accuracy": 1.0,
        "in_ppo": 0.0,
        "swapped": 1.0,
        "value_moved": 0.5,
        "clipped": 0.5,
        "start": 12.0,
        "end": 20.0,
        "ends": [20.0],
    }


def test_the_opposite_is_said_only_where_it_was_learnt():
    long, brief = summary(run([12.0, 20.0])), summary(run([12.0, 1.0]))
    assert verdicts(long, brief)[0].startswith("Told to be brief, PPO learnt the opposite: from 12")
    for off, on in ((brief, brief), (long, long), (brief, long)):
        assert "opposite" not in verdicts(off, on)[0]
