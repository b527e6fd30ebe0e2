"""The working directory on ``sys.path``: last, so that it shadows nothing, and its coati first.

A training script finds the coati beside it before any installed one, so the command line must, too.
All else in the folder (a ``rich.py``, a ``tomli.py``) gives way to what is installed.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager, suppress
from importlib.machinery import ModuleSpec, PathFinder
from typing import Iterator, Optional


class _CoatiHere:
    """A ``sys.meta_path`` finder of the coati in one folder."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def find_spec(
        self, name: str, path: object = None, target: object = None
    ) -> Optional[ModuleSpec]:
        if name not in ("coati", "chatgpt"):
            return None
        spec = PathFinder.find_spec(name, [self.folder])
        # As for Python, a folder without __init__.py gives way to a package anywhere on the path.
        return spec if spec is not None and spec.loader is not None else None


@contextmanager
def on_path(folder: str = "") -> Iterator[None]:
    """Put a folder on ``sys.path``, by default the working directory."""
    with suppress(FileNotFoundError):  # it has been deleted
        folder = folder or os.getcwd()
    finder, new = _CoatiHere(folder), folder not in sys.path
    # After the watch for the first import of coati, which is at the front.
    sys.meta_path.insert(sys.meta_path.index(PathFinder), finder)
    if new:
        sys.path.append(folder)
    try:
        yield
    finally:
        with suppress(ValueError):  # a plugin has taken it out
            sys.meta_path.remove(finder)
        with suppress(ValueError):
            if new:
                sys.path.remove(folder)
