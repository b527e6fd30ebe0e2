"""Tables that read well in colour, without it, and in a file."""

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
}


def console() -> Console:
    """The standard output; wide enough not to fold a table when it is no terminal."""
    screen = Console(highlight=False)
    return screen if screen.is_terminal else Console(highlight=False, width=200)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A borderless table whose words of state are coloured."""
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for head in heads:
        grid.add_column(head, overflow="fold")
    for row in rows:
        grid.add_row(*[Text(cell, style=_COLOURS.get(cell, "")) for cell in row])
    return grid


def write(*items: object) -> None:
    """Print texts and tables, taking no text for markup."""
    screen = console()
    for item in items:
        if isinstance(item, str):
            screen.print(item, markup=False, soft_wrap=True)
        else:
            screen.print(item)
