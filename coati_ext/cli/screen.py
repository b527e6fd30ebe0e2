"""Print tables to a terminal or a file, and what is being done."""

from __future__ import annotations

import textwrap
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

_COLOURS: Dict[str, str] = {
    "applied": "green",
    "ok": "green",
    "on": "green",
    "right": "green",
    "already upstream": "cyan",
    "loaded": "green",
    "pending": "green",
    "off": "dim",
    "refused": "bold red",
    "broken": "bold red",
    "wrong": "bold red",
    "missing": "yellow",
    "not loaded": "yellow",
}


_GAP = "  "
_INDENT = 4  # of what goes on below its row
_ROOM = 24  # the narrowest column that the words of a last cell are wrapped in


def console() -> Console:
    """A console on standard output."""
    return Console(highlight=False)


@contextmanager
def telling() -> Iterator[Callable[[str], None]]:
    """Show on standard error what is being done, and for how long."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("starting")
        yield lambda text: progress.update(task, description=text)


@dataclass(frozen=True)
class Table:
    """A borderless table, whose cells are never cut or broken, but for the words of the last."""

    heads: Tuple[str, ...]
    rows: Tuple[Tuple[str, ...], ...]

    def lines(self, width: Optional[int]) -> Iterator[Text]:
        """The lines, as wide as they are, or for a terminal of that many columns.

        Where a row is too wide, its last cells go on below it.
        """
        rows = [self.heads, *self.rows] if any(self.heads) else [*self.rows]
        if not rows:
            return
        widths = [max(map(cell_len, column)) for column in zip(*rows)]
        last = len(widths) - 1
        starts = [sum(widths[:number]) + len(_GAP) * number for number in range(len(widths))]
        beside = width is None or width - starts[last] >= min(_ROOM, widths[last])
        fit = last
        if width is not None and not beside:
            fit = sum(start + len(_GAP) + it <= width for start, it in zip(starts, widths[:last]))
        for row in rows:
            style = "bold" if row is self.heads else ""
            line = Text()
            for cell, size in zip(row[:fit], widths):
                line.append(cell, style or _COLOURS.get(cell, ""))
                line.append(" " * (size - cell_len(cell)) + _GAP)
            # The heads of what goes on below would be over nothing.
            below = [cell for cell in row[fit:] if cell and (beside or row is not self.heads)]
            indent = starts[last] if beside else _INDENT
            told = _wrapped(_GAP.join(below), None if width is None else width - indent)
            if beside:
                line.append(told[0], style or _COLOURS.get(told[0], ""))
                told = told[1:]
            line.rstrip()
            yield line
            yield from (Text(" " * indent + text, style) for text in told if text)


def _wrapped(text: str, width: Optional[int]) -> List[str]:
    if width is None:
        return [text]
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table in which states such as ``refused`` are coloured; without heads if all are empty."""
    return Table(tuple(heads), tuple(tuple(row) for row in rows))


def write(*items: object) -> None:
    """Print texts and tables, without interpreting markup in texts."""
    screen = console()
    for item in items:
        if isinstance(item, Text):
            screen.print(item, soft_wrap=True)
        elif isinstance(item, Table):
            for line in item.lines(screen.width if screen.is_terminal else None):
                screen.print(line, soft_wrap=True)
        else:
            screen.print(str(item), markup=False, soft_wrap=True)
