"""Each example runs by its command, and what it claims comes out."""

from __future__ import annotations

import json

import pytest
import torch

from helpers import ROOT

EXAMPLES = sorted(item.parent for item in (ROOT / "examples").glob("*/run.py"))
OURS = "coati_ext.patches.eos_pooling.reward_model"
SAME = 1e-4  # scores and gradients in fp32, after a few steps of training

pytestmark = [
    pytest.mark.slow,
    pytest.mark.once(why="examples for users of this year's stack"),
]


def apart(one, other):
    return float((torch.tensor(one) - torch.tensor(other)).abs().max())


@pytest.mark.enough("G1", "G4", why="the mean over all columns; the last token of other rows")
def test_ppo_starts_with_the_rewards_of_training(told, upstream):
    found = told("reward_at_the_start")
    for run in found["on"]["runs"]:
        assert apart(run["in PPO"], run["trained"]) <= SAME
        assert apart(run["in PPO"], run["padded"]) <= SAME
    for run in found["off"]["runs"]:
        # In G3 the pad that is attended in place of the end token happens to be that token.
        assert apart(run["in PPO"], run["trained"]) > 0.01 or upstream.generation == "G3"
        if upstream.generation == "G1":
            assert apart(run["in PPO"], run["padded"]) > 0.1


@pytest.mark.enough("G1", "G4", why="the mean over all columns; no position ids")
def test_a_gradient_does_not_depend_on_batches_and_pads(told, upstream):
    found = told("batch_size_one")
    for batches in found["on"]["sides"].values():
        assert [it["size"] for it in batches] == [1, 2, 4, 8, 16, 32]
        assert max(it[name] for it in batches for name in ("gradient", "weights")) <= 1e-5
        assert max(it["scores"] for it in batches) <= SAME
    off = found["off"]["sides"]
    assert min(it["gradient"] for it in off["left"]) > 0.1
    # All but G1 score rows that are padded on the right as they are alone.
    assert (min(it["gradient"] for it in off["right"]) > 0.1) == (upstream.generation == "G1")


@pytest.mark.enough("G4", why="G3 makes rewards as G4 does; G1 and G2 give one an answer")
def test_length_is_paid_for_with_the_patches_off_alone(told, upstream):
    found = told("length_bias")
    assert apart(found["on"]["earned"], found["on"]["scores"]) == 0
    if upstream.generation in ("G3", "G4"):
        off = found["off"]
        actions = torch.tensor(off["words"]) + 1
        assert apart(off["earned"], (torch.tensor(off["scores"]) * actions).tolist()) <= SAME
        longer = {
            state: run["drift"]["plus"][0][-1] - run["drift"]["minus"][0][-1]
            for state, run in found.items()
        }
        assert longer["off"] > 10
        assert longer["on"] < 5


@pytest.mark.enough("G4", why="one model for all generations; the plugin's tests are below")
def test_a_pooling_of_ones_own_is_blind_to_padding(told):
    found = told("own_pooling")
    assert set(found) == {"eos", "last_tokens"}
    assert max(run["moved"] for run in found.values()) <= 1e-5


@pytest.mark.enough("G4", why="the estimator is called in one place")
def test_an_estimator_of_ones_own_teaches(told):
    found = told("own_advantage")
    (gae,), (ours,) = (run["words"] for run in found.values())
    assert gae[0] == ours[0]
    assert gae[1:] != ours[1:]
    assert ours[-1] < ours[0] - 5


@pytest.mark.enough("G1", "G4", why="of each kind of coati one")
@pytest.mark.parametrize("example", ["own_pooling", "own_advantage"])
def test_the_tests_of_a_plugin_pass(python, upstream, example):
    option = ["-p", "coati_ext.testing.pytest_option", "--coati", str(upstream.folder)]
    where = str(ROOT / "examples" / example)
    done = python.warm("-m", "pytest", "-q", "-p", "no:cacheprovider", *option, where)
    assert "passed" in done.stdout


@pytest.mark.generations("G1")
def test_a_mean_pooled_reward_model_is_migrated(told):
    was, kept, migrated = told("migrated_reward_model").values()
    loaded = [run["loaded"] for run in (was, kept, migrated)]
    assert loaded == ["trained", "refused", "accepted"]
    differences = [apart(*zip(*run["scores"])) for run in (was, kept, migrated)]
    assert differences[0] > 0.01
    assert max(differences[1:]) <= SAME
    assert kept["scores"] != migrated["scores"]


@pytest.mark.enough("G4", why="Ray knows nothing of generations; tests/launch has the others")
def test_an_actor_of_ray_says_that_it_is_patched(python, upstream):
    pytest.importorskip("ray", reason="Ray is not installed")
    script = str(ROOT / "examples" / "ray_actors" / "run.py")
    given = ["--json", "--coati", str(upstream.folder)]
    done = python(script, *given, RAY_AUTH_MODE="disabled")
    told = json.loads(done.stdout.splitlines()[-1])
    plain, armed = told["found"].values()
    assert len({told["driver"], plain["process"], armed["process"]}) == 3
    assert plain["code"].startswith("coati.models")
    assert armed["code"] == OURS
    assert plain["patched functions"] == 0 < armed["patched functions"]
    for actor, still in ((plain, False), (armed, True)):
        alone = actor["scores"]["alone"]
        assert all(apart(row, alone) <= 1e-5 for row in actor["scores"].values()) == still


@pytest.mark.parametrize("example", EXAMPLES, ids=[item.name for item in EXAMPLES])
def test_every_example_is_told_and_pictured(example):
    """In its own folder, on the page that lists them all, and by one picture that both show."""
    picture = f"example_{example.name}.png"
    assert (ROOT / "docs" / picture).stat().st_size < 80_000
    readme = (example / "README.md").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    assert f"](../../docs/{picture})" in readme
    assert f"]({picture})" in page
    for text in (readme, page):
        assert f"python examples/{example.name}/run.py" in text
