"""Which columns of a grid are shown: where several in a row go on alike, only their ends."""

from __future__ import annotations

from typing import Any, List, Mapping, Optional, Tuple

_ENDS = 2  # shown at each end of such a run
_WORTH = 4  # fewer than these are not left out


def shown(grid: Mapping[str, Any]) -> List[Optional[int]]:
    """The columns to show, in order, and ``None`` where some are left out."""
    width = len(grid["rows"][0]["kinds"])
    alike = [_signature(grid, column) for column in range(width)]
    found: List[Optional[int]] = []
    start = 0
    while start < width:
        end = start
        while end < width and alike[end] == alike[start]:
            end += 1
        run = range(start, end)
        if len(run) < 2 * _ENDS + _WORTH:
            found += run
        else:
            found += [*run[:_ENDS], None, *run[-_ENDS:]]
        start = end
    return found


def _signature(grid: Mapping[str, Any], column: int) -> Tuple[Any, ...]:
    """What a column says about each row, but for numbers that count the columns."""
    return tuple(
        (row["kinds"][column], row["mask"][column], *(_trend(it, column) for it in _marks(row)))
        for row in grid["rows"]
    )


def _marks(row: Mapping[str, Any]) -> List[List[str]]:
    return list(row["marks"].values())


def _trend(marks: List[str], column: int) -> Any:
    mark = marks[column]
    return int(mark) - column if mark.isdigit() else mark
