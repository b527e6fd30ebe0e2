"""Upstream's trainers on two ranks train what they train in one process.

Under ColossalAI's own plugins, and through coati's own strategies where it has them, in two gloo
processes. Each rank has half of every batch, so that its gradients average to those of the batch.
"""

from __future__ import annotations

from typing import Any, Dict, List, Tuple

import pytest
import torch

import coati_ext
from coati_ext.launch.installation import version_of
from coati_ext.testing import (
    cpu_only,
    cpu_plugins,
)
from helpers.processes import on_two_ranks
from helpers.strategies import (
    WRAPPINGS,
    runnable,
    tell_what_is_lacking,
)
from helpers.trainers import away_from, expected, known_to_strategies, too_far

CPU = torch.device("cpu")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(version_of("colossalai") is None, reason="colossalai is not installed"),
]


def on_this_rank(rank: int, wrappings: List[Tuple[str, str]], numbers: str) -> Dict[str, Any]:
    with cpu_only(), cpu_plugins(), coati_ext.applied():
        return away_from(torch.load(numbers), wrappings, rank, 2, CPU)


@pytest.mark.enough("G2", "G4", why="each generation's steps are compared on one rank elsewhere")
def test_trainers_on_two_ranks_train_what_one_process_does(upstream, tmp_path):
    wrappings = known_to_strategies(runnable(WRAPPINGS))
    with cpu_only(), cpu_plugins(), coati_ext.applied():
        truth = expected(["fp32", "bf16"], CPU)
    torch.save(truth.numbers, tmp_path / "numbers")
    ranks = on_two_ranks(on_this_rank, tmp_path, wrappings, str(tmp_path / "numbers"))
    assert not [line for away in ranks for line in too_far(away, truth, wrappings)]
    tell_what_is_lacking()
