"""Time and peak memory of steps, taken by turns in one process."""

from __future__ import annotations

import gc
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Callable, ContextManager, Dict, Iterator, List, Sequence, Tuple

import torch

Step = Callable[[], Any]


@dataclass(frozen=True)
class Variant:
    """One way to do the same work."""

    name: str
    state: Callable[[], ContextManager[Any]]
    """The patches that it needs, or none."""
    prepare: Callable[[], Step]
    """Called in that state, outside of what is measured: the step."""


@dataclass(frozen=True)
class Seen:
    """What one step of a variant gave and took."""

    result: Any
    peak: int
    """Bytes above those at its start."""


def once(variant: Variant, device: torch.device) -> Seen:
    """Run a variant for its result and its peak memory, which also warms it up."""
    with variant.state():
        step = variant.prepare()
        gc.collect()
        return _on_cuda(step, device) if device.type == "cuda" else _on_cpu(step)


def by_turns(
    variants: Sequence[Variant], rounds: int, device: torch.device, done: Callable[[str], None]
) -> Dict[str, List[float]]:
    """The seconds of each variant in each round; every round begins with another variant.

    On a CPU these are seconds of this process, which other processes hardly change.
    """
    seconds: Dict[str, List[float]] = {item.name: [] for item in variants}
    for number in range(rounds):
        first = number % len(variants)
        for item in [*variants[first:], *variants[:first]]:
            with item.state():
                step = item.prepare()
                gc.collect()
                seconds[item.name].append(seconds_of(step, device))
            done(item.name)
    return seconds


def seconds_of(step: Step, device: torch.device) -> float:
    """How long a step takes."""
    if device.type != "cuda":
        start = time.process_time()
        step()
        return time.process_time() - start
    begin, end = _event(), _event()
    torch.cuda.synchronize(device)
    begin.record()
    step()
    end.record()
    torch.cuda.synchronize(device)
    return float(begin.elapsed_time(end)) / 1000


def median_and_range(values: Sequence[float]) -> Tuple[float, float, float]:
    """Median, smallest and largest."""
    ordered = sorted(values)
    half = len(ordered) // 2
    middle = ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
    return middle, ordered[0], ordered[-1]


def longest(fits: Callable[[int], bool], low: int, high: int, step: int) -> int:
    """The largest multiple of ``step`` from ``low`` to ``high`` that fits; ``low`` is known to."""
    good, bad = low // step, low // step * 2
    while bad * step <= high and fits(bad * step):
        good, bad = bad, bad * 2
    bad = min(bad, high // step + 1)
    while bad - good > 1:
        middle = (good + bad) // 2
        if fits(middle * step):
            good = middle
        else:
            bad = middle
    return good * step


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread, so that the time of the process is that of the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _on_cpu(step: Step) -> Seen:
    with torch.autograd.profiler.profile(profile_memory=True) as seen:
        result = step()
    records = [it for it in seen.kineto_results.events() if it.name() == "[memory]"]
    held = peak = 0
    for record in sorted(records, key=_start):
        held += record.nbytes()
        peak = max(peak, held)
    return Seen(result, peak)


def _start(record: Any) -> int:
    # torch 1.13 counts in microseconds.
    start: int = record.start_ns() if hasattr(record, "start_ns") else record.start_us()
    return start


def _on_cuda(step: Step, device: torch.device) -> Seen:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = step()
    torch.cuda.synchronize(device)
    return Seen(result, torch.cuda.max_memory_allocated(device) - before)


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
