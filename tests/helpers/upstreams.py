"""The coati under test: a real one with --coati PATH (or COATI_SOURCE), else each stand-in."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, List

import pytest

import coati_ext
from coati_ext.patching.patch import GENERATIONS
from coati_ext.patching.source import generation_of
from coati_ext.testing import standin


@dataclass(frozen=True)
class Upstream:
    """A folder that holds a coati."""

    folder: Path
    generation: str

    @property
    def package(self) -> Path:
        return self.folder / "coati"


def folders_under_test(config: pytest.Config) -> List[Upstream]:
    path = config.getoption("--coati")
    if not path:
        return [Upstream(standin(name), name) for name in GENERATIONS]
    folder = Path(path).resolve()
    folder = folder.parent if folder.name == "coati" else folder
    return [Upstream(folder, generation_of(folder / "coati"))]


def forget_coati() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "coati"]:
        del sys.modules[name]


@contextlib.contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Make the coati in a folder the importable one, unimported, and forget it afterwards."""
    forget_coati()
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        coati_ext.disable()
        sys.path.remove(str(folder))
        forget_coati()
