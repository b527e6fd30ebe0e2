"""What the layer itself costs in a forward: microseconds of asking hooks, with and without plugins.

Letters: B rows, S sequence columns.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Callable, ContextManager, Dict, List, Sequence

import torch
from torch import Tensor, nn

from coati_ext import active
from coati_ext.bench import measure
from coati_ext.bench.facts import UPSTREAM, at
from coati_ext.bench.lengths import made, padded
from coati_ext.bench.measure import Variant
from coati_ext.bench.scenes import reward_model_step
from coati_ext.bench.source import Source
from coati_ext.results import hidden_width
from coati_ext.switch import applied

PLUGINS = 5
ASKED = ("last_hidden_states", "pool_reward")  # by a forward of a reward model
_CALLS, _REPEATS = 500, 7
ROWS, COLUMNS = 4, 16
_PLUGIN = """
from coati_ext import hookimpl

@hookimpl
def patch_applied(row):
    pass

@hookimpl
def experience_made(experience, maker):
    pass
"""


def forwards(source: Source) -> Dict[str, List[float]]:
    """Microseconds of a reward model's forward whose backbone does nothing: all but the backbone.

    Of upstream, and of the patches with no plugin and with five; median, smallest and largest of
    many means.
    """
    model = source.valued("RewardModel")
    hidden = torch.zeros(ROWS, COLUMNS, hidden_width(source.config), device=source.device)
    model.model = _Idle(hidden.to(next(model.parameters()).dtype))
    ids, mask = (
        it.to(source.device)
        for it in padded([[3] * COLUMNS] * ROWS, COLUMNS, source.words.pad, "right")
    )
    states: Dict[str, Callable[[], ContextManager[Any]]] = {UPSTREAM: nullcontext}
    found: Dict[str, List[float]] = {}
    with TemporaryDirectory() as folder, torch.no_grad():
        for count in (0, PLUGINS):
            plugins = [_plugin(Path(folder), number) for number in range(count)]
            settings = {"plugins": plugins, "token_saving": {"level": "off"}}
            states[f"{count} plugins"] = partial(applied, settings)
        for name, state in states.items():
            with state():
                means = [_mean(lambda: model(ids, attention_mask=mask)) for _ in range(_REPEATS)]
            found[name] = [*measure.median_and_range(means)]
    return found


def asking() -> List[float]:
    """Microseconds that a forward spends on looking up its hooks' implementations."""
    with applied():
        found = [_mean(_ask) - _mean(_nothing) for _ in range(_REPEATS)]
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


class _Idle(nn.Module):
    """Stands in for a backbone: its last hidden states are given."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(
        self, input_ids: Tensor, attention_mask: Any = None, position_ids: Any = None
    ) -> Dict[str, Tensor]:
        return {"last_hidden_state": self.hidden}


def _plugin(folder: Path, number: int) -> str:
    file = folder / f"bench_plugin_{number}.py"
    file.write_text(_PLUGIN.format(number=number), encoding="utf-8")
    return str(file)


def _ask() -> None:
    for hook in ASKED:
        active.choice(hook)


def _nothing() -> None:
    for _ in ASKED:
        pass


def _mean(function: Callable[[], Any]) -> float:
    start = time.process_time()
    for _ in range(_CALLS):
        function()
    return (time.process_time() - start) / _CALLS * 1e6
