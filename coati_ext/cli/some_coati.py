"""The coati that a command runs: the one that can be imported, or a stand-in for one."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import Iterator, NamedTuple, Optional

from coati_ext.errors import CoatiNotFoundError
from coati_ext.patching.source import find_coati


class Coati(NamedTuple):
    """A coati, real or not."""

    words: str
    generation: str
    folder: str
    """The folder that holds it."""


def some_coati(generation: Optional[str] = None) -> Coati:
    """The coati that can be imported, or without one, or for a generation, a stand-in."""
    from coati_ext.testing import standin

    if generation is None:
        try:
            coati = find_coati()
            return Coati(f"The coati at {coati.root}", coati.generation, str(coati.root.parent))
        except CoatiNotFoundError:
            generation = "G4"
    words = "No coati of yours, but coati-ext's own stand-in for one, which has upstream's defects"
    return Coati(words, generation, str(standin(generation)))


@contextmanager
def importable(coati: Coati) -> Iterator[None]:
    """Let this process import that coati."""
    sys.path.insert(0, coati.folder)
    try:
        yield
    finally:
        sys.path.remove(coati.folder)
