"""What the layer itself costs in a forward: microseconds of asking hooks, with and without plugins.

Letters: B rows, S sequence columns.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Callable, Dict, List, Sequence

from coati_ext import active
from coati_ext.bench import measure
from coati_ext.bench.facts import UPSTREAM, at
from coati_ext.bench.lengths import made
from coati_ext.bench.measure import Variant
from coati_ext.bench.scenes import reward_model_step
from coati_ext.bench.source import Source
from coati_ext.switch import applied

PLUGINS = 5
ASKED = ("last_hidden_states", "pool_reward")  # by a forward of a reward model
_CALLS, _REPEATS = 2000, 7
_PLUGIN = """
from coati_ext import hookimpl

@hookimpl
def patch_applied(row):
    pass

@hookimpl
def experience_made(experience, maker):
    pass

@hookimpl(specname="pool_reward")
def other{number}(hidden, attention_mask, positions, model):
    return hidden[:, -1]
"""


def asking(plugins: int) -> List[float]:
    """Microseconds that a forward spends on asking its hooks, beyond calling their functions.

    Median, smallest and largest of seven times the mean of 2,000 forwards.
    """
    with TemporaryDirectory() as folder:
        files = [Path(folder) / f"bench_plugin_{number}.py" for number in range(plugins)]
        for number, file in enumerate(files):
            file.write_text(_PLUGIN.format(number=number), encoding="utf-8")
        settings: Dict[str, Any] = {
            "plugins": [str(file) for file in files],
            "eos_pooling": {"pooling": "eos"},
        }
        with applied(settings):
            found = [(_seconds(_ask) - _seconds(_nothing)) / _CALLS * 1e6 for _ in range(_REPEATS)]
    return [*measure.median_and_range(found)]


def unpadded(
    source: Source,
    batch: int,
    length: int,
    names: Sequence[str],
    rounds: int,
    done: Callable[[str], None],
) -> Dict[str, List[float]]:
    """Speed-up of a reward-model step whose rows are all full and share nothing."""
    size = length // 2
    pairs = made([(0, 2 * size, 2 * size)] * batch, source.words)
    scene = reward_model_step(source, pairs, 2 * size)
    variants = [Variant(UPSTREAM, nullcontext, partial(scene.prepare, UPSTREAM))]
    variants += [Variant(name, at(name), partial(scene.prepare, name)) for name in names]
    for item in variants:
        measure.once(item, source.device)
    seconds = measure.by_turns(variants, rounds, source.device, done)
    return {
        name: [
            *measure.median_and_range(
                [one / other for one, other in zip(seconds[UPSTREAM], seconds[name])]
            )
        ]
        for name in names
    }


def _ask() -> None:
    for hook in ASKED:
        active.choice(hook)


def _nothing() -> None:
    for _ in ASKED:
        pass


def _seconds(function: Callable[[], None]) -> float:
    start = time.perf_counter()
    for _ in range(_CALLS):
        function()
    return time.perf_counter() - start
