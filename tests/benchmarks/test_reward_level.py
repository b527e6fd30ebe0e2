"""Calibrated rewards of different seeds have one level, and the table tells how far apart."""

from __future__ import annotations

import pytest

from helpers import ROOT, script


@pytest.fixture(scope="module")
def reward_level():
    """The benchmark's script as a module; `benchmarks/` is no package."""
    with script(ROOT / "benchmarks" / "reward_level.py") as module:
        yield module


@pytest.mark.slow
@pytest.mark.enough("G1", "G4", why="their reward models and trainers differ most")
@pytest.mark.once(why="the command and the hook are compared on every stack; this adds them up")
def test_calibrated_seeds_are_close_where_raw_ones_are_not(upstream, reward_level, monkeypatch):
    for name in ("REFERENCE", "FIXED"):
        monkeypatch.setattr(reward_level, name, 200)
    seeds = [reward_level.measure(seed, pairs=96) for seed in (0, 1)]
    apart = {
        state: abs(seeds[0][state]["mean"] - seeds[1][state]["mean"])
        for state in ("on", "calibrated")
    }
    assert apart["calibrated"] < 0.3 < 0.5 < apart["on"]
    for found in seeds:
        assert found["calibrated"]["accuracy"] == found["on"]["accuracy"]
        assert found["calibrated"]["spread"] == pytest.approx(1, abs=0.2)


def test_the_table_has_each_seed_and_their_distance(reward_level):
    def point(mean):
        return {"off": {"mean": mean, "spread": 0.5, "accuracy": 0.75, "rejected": 0.0}}

    *_, line = reward_level.table({"G4: HEAD": [point(1.5), point(-0.25)]})
    expected = ["G4: HEAD", "off", "1.500, -0.250", "1.750", "0.50, 0.50", "0.750, 0.750"]
    assert line == expected
