"""Every plugin of ColossalAI gives the numbers, gradients and names of the bare model.

Real plugins, over a real Booster, in two gloo processes; ``cpu_plugins`` lifts what keeps them from
the CPU. ``tests/cuda`` has the same without lifting. One test a generation, for one pair of
processes is most of its cost.
"""

from __future__ import annotations

from typing import Any, Dict, List, Tuple

import pytest
import torch

from coati_ext.launch.installation import version_of
from coati_ext.testing import cpu_only, cpu_plugins
from helpers.processes import on_two_ranks
from helpers.strategies import (
    LACKING,
    RECENT,
    WRAPPINGS,
    cases,
    measure,
    runnable,
    tell_what_is_lacking,
    wrong,
)

CPU = torch.device("cpu")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(version_of("colossalai") is None, reason="colossalai is not installed"),
]


def measured(rank: int, wrappings: List[Tuple[str, str]]) -> Dict[str, Any]:
    with cpu_only(), cpu_plugins():
        return measure(cases(wrappings), rank, 2, CPU)


@pytest.mark.enough("G2", "G4", why="G1 and G3 have modules and forwards as G2 and G4 have")
def test_every_wrapped_model_is_the_bare_one(upstream, tmp_path):
    wrappings = runnable(WRAPPINGS)
    ranks = on_two_ranks(measured, tmp_path, wrappings)
    assert not [line for result in ranks for line in wrong(result, cases(wrappings))]
    tell_what_is_lacking()


@pytest.mark.generations("G3", "G4")
@pytest.mark.enough("G4", why="G3 has modules and forwards as G4 has")
@pytest.mark.skipif(LACKING or not RECENT, reason="needs colossalai 0.3.7 with torch 2.1")
def test_a_model_cut_in_two_is_the_whole_one(upstream, tmp_path):
    wrappings = [("tensor", "fp32")]
    ranks = on_two_ranks(measured, tmp_path, wrappings)
    assert not [line for result in ranks for line in wrong(result, cases(wrappings))]


def test_what_was_lifted_is_back_on_exit():
    from colossalai.zero.gemini.chunk.chunk import Chunk
    from colossalai.zero.low_level.low_level_optim import LowLevelZeroOptimizer

    owners = [torch, torch.cuda, torch.distributed, torch.Tensor, torch.nn.Module]
    owners += [Chunk, LowLevelZeroOptimizer]
    before = [dict(vars(owner)) for owner in owners]
    with cpu_plugins():
        during = [dict(vars(owner)) for owner in owners]
    assert [dict(vars(owner)) for owner in owners] == before
    assert during != before
