"""Memory, turns and the search for the longest row. No time is asserted."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from coati_ext.bench import measure
from coati_ext.bench.measure import Variant

CPU = torch.device("cpu")


def variant(name, step, seen=None):
    @contextmanager
    def state():
        if seen is not None:
            seen.append(name)
        yield

    return Variant(name, state, lambda: step)


def test_peak_memory_is_what_was_held_at_once():
    """Weights and gradients from before do not count, nor does what was freed."""
    weight = torch.zeros(1000, requires_grad=True)
    weight.sum().backward()

    def one_after_another():
        for _ in range(3):
            torch.zeros(1_000_000)

    def together():
        return [torch.zeros(1_000_000) for _ in range(3)]

    assert 4e6 <= measure.once(variant("one", one_after_another), CPU).peak < 4.1e6
    seen = measure.once(variant("all", together), CPU)
    assert 12e6 <= seen.peak < 12.1e6
    assert len(seen.result) == 3


def test_variants_run_by_turns_in_their_states():
    seen, done = [], []
    variants = [variant(name, lambda: None, seen) for name in "abc"]
    seconds = measure.by_turns(variants, 3, CPU, done.append)
    assert "".join(seen) == "".join(done) == "abcbcacab"
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3, "c": 3}


@pytest.mark.parametrize("fit", [64, 65, 127, 128, 640, 1000, 4095, 4096])
def test_the_longest_that_fits(fit):
    asked = []

    def fits(size):
        asked.append(size)
        return size <= fit

    assert measure.longest(fits, 64, 2048, 64) == min(fit, 2048) // 64 * 64
    assert max(asked) <= 2048
    assert len(asked) == len(set(asked)) <= 11


def test_median_and_range():
    assert measure.median_and_range([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
    assert measure.median_and_range([4.0, 1.0]) == (2.5, 1.0, 4.0)
