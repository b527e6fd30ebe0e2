"""From training a reward model to PPO: the same text gets the same reward."""

from __future__ import annotations

import pytest

import coati_ext
from helpers import ROOT, script

SCRIPT = ROOT / "examples" / "reward_model_in_ppo" / "run.py"
SHORT = {"pairs": 32, "held_out": 12, "epochs": 1}


def compare(family, pad):
    """What the example measures, as (accuracy in training form, in PPO, largest difference)."""
    with script(SCRIPT) as example:
        found = example.measure(family, pad, **SHORT)
    return found["accuracy in training"], found["accuracy in PPO"], found["difference"]


@pytest.mark.slow
@pytest.mark.once(why="the forms of both are compared on every stack by the patches' own tests")
@pytest.mark.parametrize(("family", "pad"), [("gpt2", "pad"), ("bloom", "eos")])
def test_a_reward_model_scores_in_ppo_as_in_its_training(upstream, family, pad):
    with coati_ext.applied():
        in_training, in_ppo, difference = compare(family, pad)
    assert difference <= 1e-4
    assert in_training == in_ppo


@pytest.mark.slow
@pytest.mark.once(why="the forms of both are compared on every stack by the patches' own tests")
@pytest.mark.parametrize(("family", "pad"), [("gpt2", "pad"), ("bloom", "eos")])
def test_unpatched_upstream_scores_otherwise_in_ppo(upstream, family, pad):
    _, _, difference = compare(family, pad)
    if (upstream.generation, pad) == ("G3", "eos"):
        # The pad attended in place of the end token happens to be that token.
        assert difference <= 1e-4
    else:
        assert difference > 0.01


@pytest.mark.slow
@pytest.mark.once(why="an example for users of this year's stack")
@pytest.mark.enough("G2", why="the tests above call the same function for every generation")
def test_the_example_prints_what_it_measured(told):
    found = told("reward_model_in_ppo", "--pairs", "16", "--held-out", "8", "--pad", "pad")
    for state, numbers in found.items():
        assert (numbers["difference"] <= 1e-4) == (state == "on")
        assert 0 <= numbers["accuracy in PPO"] <= 1
    assert found["on"]["correlation"] == pytest.approx(1)
