"""PPO by upstream's own trainer, patched, learns what the planted task asks for."""

from __future__ import annotations

import pytest

import coati_ext
from helpers import ROOT, script


@pytest.fixture(scope="module")
def planted_ppo():
    """The benchmark's script as a module; `benchmarks/` is no package."""
    with script(ROOT / "benchmarks" / "planted_ppo.py") as module:
        yield module


@pytest.mark.slow
@pytest.mark.enough("G2", "G4", why="G1 and G3 learn by the loops and losses of G2 and G4")
@pytest.mark.once(why="each step and loss is compared on every stack; this adds them up")
def test_a_short_patched_run_raises_the_true_score(upstream, planted_ppo):
    """Seeded, so the same each time: from -0.45 to about 0.1; unpatched G3 and G4 stay below 0."""
    with coati_ext.applied():
        curve = planted_ppo.train(seed=0, episodes=6, pairs=1500)
    assert len(curve) == 7
    assert (curve[-2]["score"] + curve[-1]["score"]) / 2 > curve[0]["score"] + 0.35
    assert curve[-1]["ended"] > 0.9
    assert 0 < curve[-1]["kl"] < 20


def test_the_true_score_is_that_of_the_words(planted_ppo):
    assert planted_ppo.true_score(["good0"] * 8) == 1
    assert planted_ppo.true_score(["bad0"] * 4 + ["good1"] * 4) == 0
    assert planted_ppo.true_score(["word1"] * 24) == -1
    assert planted_ppo.true_score([]) == -0.5


def test_a_coati_that_cannot_run_has_its_reason_in_the_table(planted_ppo):
    point = {"score": 0.5, "words": 8.0, "ended": 1.0, "kl": 2.0, "reward": 3.0}
    reason, *_ = planted_ppo.cells({"error": "KeyError: 'cache_position'"})
    assert "cannot run: KeyError: 'cache_position'" in reason
    assert planted_ppo.cells({"curves": [[point] * 6, [point] * 6]}) == [
        "0.50",
        "0.50 (0.50, 0.50)",
        "8.0",
        "100%",
        "2.0",
        "3.00",
    ]
