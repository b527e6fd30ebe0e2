"""A layout as a picture, PNG or SVG: patches off on the left, on on the right.

It brings its own background, so that a dark page shows it as a light one does, and says nothing by
colour alone: every kind of token has a letter, pads are hatched, what is attended is underlined.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple

from coati_ext.show.columns import shown
from coati_ext.show.text import LETTERS

LEGEND = (
    "q prompt, a answer, E its end token, hatched: pad; black bar: attended; R: the reward is read "
    "here (r: averaged);\nnumbers: the value of this action is read here, or the action trained; "
    "V: the value of the whole answer (v: averaged)"
)
# Of Okabe and Ito: told apart with any colour vision, and from each other in grey.
_FILLS = {"pad": "#ffffff", "prompt": "#b9dcf2", "answer": "#f5cf7a", "EOS": "#00694d"}
_MARKS = {"reward": "#000000", "old value": "#b34f00", "new value": "#005a94", "action": "#444444"}
_CELL, _NAMES, _GAP = 0.3, 1.1, 0.25  # inches: a cell, the names to its left, between the states
_TOLD = 14  # cells, over which a line of so many letters fits
_LETTERS = 88
_LANE, _ROW, _TITLE = 0.62, 0.35, 1.6  # in cells: a lane of marks, a gap, what is over a grid


def draw(batch: Mapping[str, Any], file: Path) -> None:
    """Write the picture of a batch that :mod:`coati_ext.cli.show` laid out; needs matplotlib."""
    from matplotlib.figure import Figure

    states = batch["states"]
    wide = [max((len(shown(grid)) for grid in it["grids"]), default=_TOLD) for it in states]
    inches = [_NAMES + max(count, _TOLD) * _CELL + _GAP for count in wide]
    told = max(sum(map(_line_count, state["findings"])) for state in states)
    cells = max(map(_height, states)) + _TITLE + told * _LANE
    high, total = cells * _CELL + _GAP, sum(inches)
    figure = Figure(figsize=(total, high + _GAP), facecolor="white")
    left = 0.0
    for state, inch in zip(states, inches):
        place = (left / total, _GAP / (high + _GAP), inch / total, high / (high + _GAP))
        axis = figure.add_axes(place)
        axis.set_xlim((0 - _NAMES) / _CELL, (inch - _NAMES) / _CELL)
        axis.set_ylim(high / _CELL, 0)
        axis.axis("off")
        _state(axis, state)
        left += inch
    figure.text(0.1 / total, 0.1 / (high + _GAP), LEGEND, fontsize=7)
    figure.savefig(file, dpi=150)


def _height(state: Mapping[str, Any]) -> float:
    return sum(
        _TITLE + sum(1 + _ROW + _LANE * len(row["marks"]) for row in grid["rows"])
        for grid in state["grids"]
    )


def _state(axis: Any, state: Mapping[str, Any]) -> None:
    left = 0.3 - _NAMES / _CELL
    axis.text(left, 0.9, state["title"], fontsize=11, weight="bold", va="center")
    top = _TITLE
    for grid in state["grids"]:
        axis.text(left, top + 0.8, ", ".join(grid["models"]), fontsize=8, va="center")
        top += _TITLE
        columns = shown(grid)
        for row in grid["rows"]:
            top = _row(axis, row, columns, top)
    for text in state["findings"]:
        told = textwrap.fill(text, _LETTERS, subsequent_indent="   ")
        axis.text(left, top, f"- {told}", fontsize=7, va="top")
        top += _LANE * _line_count(text)


def _line_count(finding: str) -> int:
    return len(textwrap.wrap(finding, _LETTERS))


def _row(axis: Any, row: Mapping[str, Any], columns: Sequence[Optional[int]], top: float) -> float:
    beside: Dict[str, Any] = {"ha": "right", "va": "center", "fontsize": 7}
    axis.text(-0.3, top + 0.5, f"row {row['name']}", **beside)
    for place, column in enumerate(columns):
        if column is None:
            axis.text(place + 0.5, top + 0.5, "~", ha="center", va="center", fontsize=8)
        else:
            _token(axis, row, column, (place, top))
    top += 1
    for lane, marks in row["marks"].items():
        axis.text(-0.3, top + _LANE / 2, lane, color=_MARKS[lane], **beside)
        for place, column in enumerate(columns):
            if column is not None and marks[column]:
                strong = marks[column] in ("R", "V") and lane == "reward"
                axis.text(
                    place + 0.5,
                    top + _LANE / 2,
                    marks[column],
                    color="white" if strong else _MARKS[lane],
                    weight="bold",
                    ha="center",
                    va="center",
                    fontsize=7,
                    bbox={"facecolor": "black", "pad": 1.2, "linewidth": 0} if strong else None,
                )
        top += _LANE
    return top + _ROW


def _token(axis: Any, row: Mapping[str, Any], column: int, corner: Tuple[float, float]) -> None:
    from matplotlib.patches import Rectangle

    kind, (left, top) = row["kinds"][column], corner
    hatch = "////" if kind == "pad" else None
    axis.add_patch(
        Rectangle(
            (left, top), 1, 0.86, facecolor=_FILLS[kind], edgecolor="0.6", hatch=hatch, lw=0.5
        )
    )
    letter = {} if kind != "EOS" else {"color": "white", "weight": "bold"}
    if kind != "pad":
        text = {"ha": "center", "va": "center"}
        axis.text(left + 0.5, top + 0.32, LETTERS[kind], fontsize=7, **text, **letter)
        axis.text(left + 0.5, top + 0.68, row["texts"][column][:6], fontsize=3.4, **text, **letter)
    if row["mask"][column]:
        axis.add_patch(Rectangle((left, top + 0.86), 1, 0.1, facecolor="black", lw=0))
