"""Every plugin of ColossalAI gives the numbers, gradients and names of the bare model.

Real plugins, over a real Booster, in two gloo processes; ``cpu_plugins`` lifts what keeps them from
the CPU. ``tests/cuda`` has the same without lifting. One test a generation, for one pair of
processes is most of its cost.
"""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, Tuple

import pytest
import torch
from strategies import LACKING, RECENT, Case, cases, measure, runnable
from two_ranks import on_two_ranks

from coati_ext.launch.installation import version_of
from coati_ext.testing import cpu_only, cpu_plugins

CPU = torch.device("cpu")
WRAPPINGS = [
    ("ddp", "fp32"),
    ("zero1", "fp32"),
    ("zero2", "fp32"),
    ("zero2", "bf16"),
    ("gemini", "bf16"),
]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(version_of("colossalai") is None, reason="colossalai is not installed"),
]


def tell_what_is_lacking() -> None:
    if LACKING:
        pytest.skip("all but ZeRO, which this colossalai has for torch 2.1 and later")


def measured(rank: int, wrappings: List[Tuple[str, str]]) -> Dict[str, Any]:
    with cpu_only(), cpu_plugins():
        return measure(cases(wrappings), rank, 2, CPU)


def test_every_wrapped_model_is_the_bare_one(upstream, tmp_path):
    wrappings = runnable(WRAPPINGS)
    ranks = on_two_ranks(measured, tmp_path, wrappings)
    assert not [line for result in ranks for line in wrong(result, cases(wrappings))]
    tell_what_is_lacking()


@pytest.mark.generations("G3", "G4")
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


def wrong(result: Dict[str, Any], expected: List[Case]) -> Iterator[str]:
    """What is not as it must be, a line each."""
    assert list(result) == [str(case) for case in expected]
    for case in expected:
        got = result[str(case)]
        for name, away in got["away"].items():
            # A half-precision model may be as far from float32 as the bare one is, twice at most:
            # a padded batch is rounded otherwise than a row alone, and so is a sum over ranks.
            allowed = 1e-5 if case.precision == "fp32" else 2 * got["noise"][name]
            if not away <= allowed < 0.1:
                yield f"{case}: {name} are {away:.1e} away, allowed are {allowed:.1e}"
        if not got["largest gradient"] > 0.01:
            yield f"{case}: nothing is learnt"
        if got["keys"]["patched"] != got["keys"]["unpatched"]:
            yield f"{case}: the patches change the keys of the state dict"
        if not got["positions"]:
            yield f"{case}: the backbone is not seen to take position ids"
        if case.kind == "actor" and got["embeddings"] != [64, 32]:
            yield f"{case}: the output embeddings are not seen"
