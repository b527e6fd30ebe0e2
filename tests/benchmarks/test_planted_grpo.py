"""The step of coati.distributed, patched, learns what the planted task asks for."""

from __future__ import annotations

import pytest
import torch

from coati_ext.testing import has_distributed
from helpers import ROOT, script


@pytest.fixture(scope="module")
def planted_grpo():
    """The benchmark's script as a module; `benchmarks/` is no package."""
    with script(ROOT / "benchmarks" / "planted_grpo.py") as module:
        yield module


@pytest.mark.slow
@pytest.mark.generations("G4")
@pytest.mark.once("each step is compared on every stack; this adds them up")
def test_a_short_patched_run_learns_at_a_temperature_that_upstream_does_not(
    upstream, planted_grpo, monkeypatch
):
    if not has_distributed():
        pytest.skip("coati.distributed, or what it imports, is not here")
    monkeypatch.setattr(planted_grpo, "EPISODES", 2)
    before, on = planted_grpo.train(0.6, seed=0, on=True)
    _, off = planted_grpo.train(0.6, seed=0, on=False)
    assert before == pytest.approx(2.5, abs=0.5)
    assert on > off + 1
    assert on > before + 3


def test_the_reward_is_the_share_of_every_fourth_token(planted_grpo):
    ids = torch.tensor([[3, 3, 4, 8, 12, 16], [4, 4, 5, 6, 7, 8]])
    assert planted_grpo.rewards(ids).tolist() == [10.0, 2.5]
