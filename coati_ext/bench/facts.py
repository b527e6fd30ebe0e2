"""Measure the stages, and say what was found as plain data."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Callable, ContextManager, Dict, Iterator, List, Sequence

import torch

from coati_ext.bench import measure
from coati_ext.bench.lengths import Pair, counts
from coati_ext.bench.measure import Variant
from coati_ext.bench.scenes import SCENES, Scene, actions_of, fitted, rows_of
from coati_ext.bench.source import Source
from coati_ext.plan import make_plan
from coati_ext.switch import applied

Facts = Dict[str, Any]
UPSTREAM = "upstream"
_KNOWN = ("off", "groups", "packed", "prefix", "auto")
_PARTS, _TIMES = 4, 16  # --longest tries quarters of the length, up to so many times it


def levels() -> List[str]:
    """The levels that can be chosen, those of the user's plugins last."""
    offered = make_plan().registry.implementations("last_hidden_states")
    names = [item.name for item in offered]
    known = [name for name in _KNOWN if name in names]
    return known + [name for name in names if name not in known]


def at(level: str) -> Callable[[], ContextManager[Any]]:
    """The patches on with that level; upstream is none of them."""
    if level == UPSTREAM:
        return nullcontext
    # The answers are given in the place of those that upstream's sampler would give.
    settings = {"token_saving": {"level": level}, "rollout": {"generate": "upstream"}}
    return partial(applied, settings)


def tokens(stage: str, pairs: Sequence[Pair], batch: int, length: int) -> Facts:
    """The tokens of all full batches of a stage, padded and real and those of each level."""
    total: Dict[str, int] = {}
    batches = range(0, len(pairs) - batch + 1, batch)
    for start in batches:
        some = fitted(stage, pairs[start : start + batch], length)
        for name, count in counts(rows_of(stage, some), length).items():
            total[name] = total.get(name, 0) + count
    return {"batches": len(batches), **total}


def stage(
    scene: Scene,
    names: Sequence[str],
    rounds: int,
    device: torch.device,
    done: Callable[[str], None],
) -> Facts:
    """Measure upstream, the levels and the floors of a stage: first for numbers, then for time."""
    patched = [UPSTREAM, *names]
    variants = [Variant(name, at(name), partial(scene.prepare, name)) for name in patched]
    variants += [Variant(name, nullcontext, ready) for name, ready in scene.floors.items()]
    rows: Dict[str, Facts] = {}
    for item in variants:
        with item.state():
            item.prepare()  # what it makes once is not counted
        with _counting(scene) as computed:
            seen = measure.once(item, device)
        errors = scene.errors(seen.result) if item.name in patched else {}
        rows[item.name] = {"peak": seen.peak, "errors": errors, "computed": computed[0]}
        del seen
        done(item.name)
    seconds = measure.by_turns(variants, rounds, device, done)
    for name, row in rows.items():
        row["seconds"] = seconds[name]
        row["speedup"] = _ratios(seconds[UPSTREAM], seconds[name])
        row["memory"] = rows[UPSTREAM]["peak"] / max(1, row["peak"])
        row["of_floor"] = {it: _ratios(seconds[it], seconds[name]) for it in scene.floors}
    return {"tokens": scene.tokens, "variants": rows}


def longest(
    name: str,
    source: Source,
    pairs: Sequence[Pair],
    length: int,
    level: str,
    done: Callable[[str], None],
) -> Facts:
    """The longest row of a batch that a level trains in the memory that upstream takes.

    Upstream's own longest row is ``length``, to which it pads all rows.
    """

    def peak(at_level: str, columns: int) -> int:
        some = _with_long_row(fitted(name, pairs, length), columns, actions_of(columns))
        scene = SCENES[name](source, some, columns)
        variant = Variant(at_level, at(at_level), partial(scene.prepare, at_level))
        found = measure.once(variant, source.device).peak
        done(f"{at_level}, {columns} columns")
        return found

    budget = peak(UPSTREAM, length)
    step = max(1, length // _PARTS)
    limit = getattr(source.config, "max_position_embeddings", None) or _TIMES * length
    limit = min(int(limit), _TIMES * length)
    found = measure.longest(
        lambda columns: peak(level, columns) <= budget, length // step * step, limit, step
    )
    return {
        "level": level,
        "budget": budget,
        "upstream": length,
        "longest": found,
        "ratio": found / length,
        "at_least": found + step > limit,
    }


def _with_long_row(pairs: Sequence[Pair], columns: int, answer: int) -> List[Pair]:
    """The pairs, of which the first has as long a prompt as a row of ``columns`` allows."""
    first = pairs[0]
    draw = (first.prompt * (columns // max(1, len(first.prompt)) + 1))[: columns - answer]
    filler = (first.chosen[:-1] or first.prompt) * answer
    return [Pair(draw, filler[: answer - 1] + first.chosen[-1:], first.rejected), *pairs[1:]]


@contextmanager
def _counting(scene: Scene) -> Iterator[List[int]]:
    """The tokens that models were asked for since the step was prepared."""
    counted = [0]

    def count(_: Any, given: Any, __: Any) -> None:
        counted[0] += given[0].numel()

    hooks = [item.register_forward_hook(count) for item in scene.embeddings]
    try:
        yield counted
    finally:
        for hook in hooks:
            hook.remove()


def _ratios(over: Sequence[float], under: Sequence[float]) -> List[float]:
    """Median, smallest and largest ratio of two variants in the same round."""
    return [*measure.median_and_range([one / max(other, 1e-9) for one, other in zip(over, under)])]
