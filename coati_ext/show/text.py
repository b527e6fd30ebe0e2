"""A layout as lines for a terminal: letters and digits, in no colour of their own."""

from __future__ import annotations

from typing import Any, Iterator, Mapping, Optional

from rich.text import Text

from coati_ext.show.columns import shown

LETTERS = {"pad": ".", "prompt": "q", "answer": "a", "EOS": "E"}
LEGEND = (
    "tokens: q prompt, a answer, E its end token, . pad    mask: 1 attended",
    "reward: R is read here, r is one of several that are averaged",
    "values: 0 1 2 ... that of this action is read here, V that of the whole answer (v averaged)",
)
_STYLES = {"pad": "dim", "answer": "bold", "EOS": "bold reverse"}
_INDENT = "  "
_NARROWEST = 8  # columns of a batch beside each other, however narrow the terminal


def lines(grid: Mapping[str, Any], width: Optional[int]) -> Iterator[Text]:
    """The lines of a grid, in blocks that fit into so many columns of a terminal."""
    rows = grid["rows"]
    lanes = ["tokens", "mask", *rows[0]["marks"]]
    names = max(len(row["name"]) for row in rows)
    heads = max(map(len, lanes))
    columns = shown(grid)
    marks = [mark for row in rows for lane in row["marks"].values() for mark in lane]
    cell = max(map(len, marks)) + 1
    room = len(columns)
    if width is not None:
        used = len(_INDENT) + names + heads + 4
        room = max((width - used) // cell, _NARROWEST)
    yield Text(f"fed to: {', '.join(grid['models'])}")
    for start in range(0, len(columns), room):
        part = columns[start : start + room]
        for row in rows:
            for lane in lanes:
                name = row["name"] if lane == "tokens" else ""
                line = Text(f"{_INDENT}{name:{names}}  {lane:{heads}}  ")
                for place in part:
                    line.append_text(_cell(row, lane, place, cell))
                line.rstrip()
                yield line


def _cell(row: Mapping[str, Any], lane: str, column: Optional[int], width: int) -> Text:
    if column is None:
        return Text(f"{'~':{width}}", "dim")
    kind = row["kinds"][column]
    if lane == "tokens":
        # Only the letter is reversed, not the gap beside it.
        return Text(LETTERS[kind], _STYLES.get(kind, "")).append(" " * (width - 1), "not reverse")
    if lane == "mask":
        seen = row["mask"][column]
        return Text(f"{'1' if seen else '.':{width}}", "" if seen else "dim")
    return Text(f"{row['marks'][lane][column]:{width}}", "bold")
