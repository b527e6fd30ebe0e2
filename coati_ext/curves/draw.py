"""Curves as one picture: a panel a curve, a line a run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, List, Mapping, Tuple

from coati_ext.curves.catalogue import PANELS, STAGES, Panel
from coati_ext.curves.events import Run

_COLUMNS = 4
# Of Okabe and Ito: told apart with any colour vision; strokes and markers tell without colours.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_STROKES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v")


def panels_of(runs: Mapping[str, Run]) -> List[Tuple[str, List[Panel]]]:
    """The stages and panels of which any run has a curve."""
    names = {name for run in runs.values() for name in run}
    found = [(it, [one for one in PANELS if f"{it}/{one.curve}" in names]) for it in STAGES]
    return [(stage, panels) for stage, panels in found if panels]


def draw(runs: Mapping[str, Run], file: Path) -> None:
    """Write a PNG of the curves in the catalogue; it needs matplotlib."""
    from matplotlib.figure import Figure

    stages = panels_of(runs)
    heights = [math.ceil(len(panels) / _COLUMNS) for _, panels in stages]
    legend = math.ceil(len(runs) / 3)
    height = 2.2 * sum(heights) + 0.35 * len(stages) + 0.25 * legend
    figure = Figure(figsize=(14, height), layout="constrained")
    parts = figure.subfigures(len(stages), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, (stage, panels), rows in zip(parts, stages, heights):
        part.suptitle(STAGES[stage], fontsize=11, fontweight="bold", x=0.01, ha="left")
        axes = part.subplots(rows, _COLUMNS, squeeze=False).flatten()
        for axis, panel in zip(axes, panels):
            _panel(axis, stage, panel, runs)
        for axis in axes[len(panels) :]:
            axis.set_axis_off()
    lines, names = _legend(runs)
    figure.legend(lines, names, loc="outside upper left", ncols=3, fontsize=9, frameon=False)
    figure.savefig(file, dpi=110)


def _panel(axis: Any, stage: str, panel: Panel, runs: Mapping[str, Run]) -> None:
    if panel.mark is not None:
        axis.axhline(panel.mark, color="0.75", linewidth=0.8, zorder=0)
    for place, run in enumerate(runs.values()):
        steps, values = _points(run, f"{stage}/{panel.curve}")
        if not steps:
            continue
        # A marker on each of many points would hide the line.
        axis.plot(steps, values, **_style(place), markevery=max(1, len(steps) // 8))
        at, spread = _points(run, f"{stage}/{panel.spread}")
        if at == steps:
            low = [value - around for value, around in zip(values, spread)]
            high = [value + around for value, around in zip(values, spread)]
            axis.fill_between(steps, low, high, color=_style(place)["color"], alpha=0.15, lw=0)
    axis.set_title(panel.title, fontsize=9, loc="left")
    axis.set_ylabel(panel.unit, fontsize=8)
    axis.set_xlabel("updates of the weights", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.ticklabel_format(useOffset=False)
    axis.spines[["top", "right"]].set_visible(False)
    if panel.limits:
        edge = 0.04 * (panel.limits[1] - panel.limits[0])
        axis.set_ylim(panel.limits[0] - edge, panel.limits[1] + edge)


def _points(run: Run, name: str) -> Tuple[List[int], List[float]]:
    points = run.get(name, [])
    return [step for step, _ in points], [value for _, value in points]


def _style(place: int) -> Mapping[str, Any]:
    return {
        "color": _COLOURS[place % len(_COLOURS)],
        "linestyle": _STROKES[place % len(_STROKES)],
        "marker": _MARKERS[place % len(_MARKERS)],
        "markersize": 3.5,
        "linewidth": 1.4,
    }


def _legend(runs: Mapping[str, Run]) -> Tuple[List[Any], List[str]]:
    from matplotlib.lines import Line2D

    return [Line2D([], [], **_style(place)) for place in range(len(runs))], list(runs)
