"""Print tables to a terminal or a file."""

from __future__ import annotations

from typing import Dict, Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

_COLOURS: Dict[str, str] = {
    "applied": "green",
    "fits": "green",
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


def console() -> Console:
    """A console on standard output, 200 columns wide if that is not a terminal."""
    screen = Console(highlight=False)
    return screen if screen.is_terminal else Console(highlight=False, width=200)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A borderless table in which states such as ``refused`` are coloured."""
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for head in heads:
        grid.add_column(head, overflow="fold")
    for row in rows:
        grid.add_row(*[Text(cell, style=_COLOURS.get(cell, "")) for cell in row])
    return grid


def write(*items: object) -> None:
    """Print texts and tables, without interpreting markup in texts."""
    screen = console()
    for item in items:
        if isinstance(item, str):
            screen.print(item, markup=False, soft_wrap=True)
        else:
            screen.print(item)
