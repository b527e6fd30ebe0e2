"""``coati-ext bench`` on a tiny model: which numbers it gives, never how long anything takes."""

from __future__ import annotations

import json
import re

import pytest

from coati_ext.testing import tiny_config

LEVELS = ["off", "groups", "packed", "prefix", "auto"]
CUT = """
from coati_ext import hookimpl

@hookimpl(specname="last_hidden_states")
def doubled(backbone, input_ids, attention_mask, position_ids):
    return 2 * backbone(input_ids, attention_mask=attention_mask.long())["last_hidden_state"]
"""


@pytest.fixture
def bench(upstream, tmp_path, capsys):
    """Run the command in this process: its status, and what it prints."""
    from coati_ext.cli import main

    tiny_config("llama", layers=1).to_json_file(str(tmp_path / "config.json"))
    small = ("--model", str(tmp_path / "config.json"), "--rounds", "1", "--batch", "3")

    def run(*arguments):
        status = main(["bench", *small, "--length", "64", "--scale", "0.2", *arguments])
        return status, capsys.readouterr()

    return run


def facts(bench, *arguments):
    status, printed = bench("--json", *arguments)
    assert status == 0, printed.out
    return json.loads(printed.out)


def test_a_training_step_of_a_reward_model(bench, upstream):
    found = facts(bench, "--stage", "rm")
    assert found["levels"] == LEVELS
    stage = found["stages"]["rm"]
    tokens, variants = stage["tokens"], stage["variants"]
    assert list(variants)[:6] == ["upstream", *LEVELS]
    assert tokens["padded"] > tokens["groups"] >= tokens["real"] > tokens["unique"]
    assert variants["upstream"]["computed"] == tokens["padded"]
    assert variants["packed"]["computed"] == tokens["real"]
    if upstream.generation in ("G3", "G4"):  # before, chosen and rejected are two calls
        assert tokens["unique"] <= variants["prefix"]["computed"] < tokens["real"]
    for level in LEVELS:
        assert variants[level]["errors"]["reward"] <= 1e-5
        assert variants[level]["errors"]["gradient"] <= 1e-5
        assert 0 < variants[level]["peak"] <= 1.1 * variants["upstream"]["peak"]
    assert found["tokens"]["rm"]["batches"] == 16


def test_scoring_and_a_training_step_of_ppo(bench):
    found = facts(bench, "--stage", "scoring", "--stage", "ppo", "--levels", "packed,off")
    for level in ("packed", "off"):
        errors = found["stages"]["scoring"]["variants"][level]["errors"]
        assert errors["log_prob"] <= 1e-5
        assert errors["value"] <= 1e-5
    for stage in found["stages"].values():
        assert stage["variants"]["packed"]["computed"] < stage["variants"]["off"]["computed"]
        assert list(stage["variants"])[-1].startswith("floor")


@pytest.mark.enough("G4", why="the same lines on every coati")
def test_a_level_of_a_plugin_is_measured_and_its_error_is_seen(bench, tmp_path):
    (tmp_path / "mine.py").write_text(CUT)
    (tmp_path / "coati-ext.toml").write_text('plugins = ["./mine.py"]\n')
    found = facts(bench, "--stage", "rm", "--levels", "packed,doubled")
    variants = found["stages"]["rm"]["variants"]
    assert variants["doubled"]["errors"]["reward"] > 1e-2
    assert variants["packed"]["errors"]["reward"] <= 1e-5


@pytest.mark.enough("G1", "G4", why="the first trainer and the last")
def test_the_longest_row_in_upstreams_memory(bench):
    found = facts(bench, "--stage", "rm", "--stage", "ppo", "--levels", "auto", "--longest")
    for row in found["longest"].values():
        assert row["upstream"] == 64
        assert row["longest"] >= 64
        assert row["longest"] <= 512  # the positions of the model


@pytest.mark.enough("G4", why="the same lines on every coati")
def test_the_layer_and_the_view(bench):
    status, printed = bench("--stage", "layer", "--stage", "rm", "--levels", "auto")
    assert status == 0
    for told in ("looking up its hooks", "5 plugins", "nothing padded, auto", "floor, real tokens"):
        assert told in printed.out
    assert "% real" in printed.err


@pytest.mark.enough("G4", why="the same lines on every coati")
def test_json_and_picture_are_written(bench, tmp_path):
    pytest.importorskip("matplotlib")
    facts(bench, "--stage", "rm", "--levels", "auto", "--out", str(tmp_path / "out"))
    assert (tmp_path / "out" / "bench.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads((tmp_path / "out" / "bench.json").read_text())["levels"] == ["auto"]


@pytest.mark.enough("G4", why="the same lines on every coati")
def test_data_of_the_user(bench, tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"prompt": 9, "chosen": 4, "rejected": 6}\n' * 7)
    found = facts(bench, "--stage", "rm", "--levels", "auto", "--data", str(file))
    assert found["tokens"]["rm"]["batches"] == 2
    assert found["tokens"]["rm"]["real"] == 2 * 3 * (13 + 15)


@pytest.mark.enough("G4", why="the same lines on every coati")
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--levels", "pakced"], "no level 'pakced'.*did you mean packed"),
        (["--data", "none.jsonl"], "cannot read none.jsonl"),
        (["--model", "nowhere"], "no configuration of a model at nowhere"),
    ],
)
def test_what_cannot_be_measured_is_told(bench, arguments, told):
    status, printed = bench("--stage", "rm", *arguments)
    assert status == 2
    assert re.search(told, printed.err)


@pytest.mark.enough("G4", why="the same lines on every coati")
def test_patches_that_are_on_are_told(bench, monkeypatch):
    monkeypatch.setenv("COATI_EXT", "1")
    status, printed = bench("--stage", "rm")
    assert status == 2
    assert "unset COATI_EXT" in printed.err
