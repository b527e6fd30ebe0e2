"""What tests of several areas share: no test, and nothing that only one area needs.

A test runs for each generation of coati, and each family of models, and on each stack of
``noxfile.py`` where that can make a difference. Where it can not, its marker ``enough`` or ``once``
says why; and where two matrices are independent, such as families and kinds of pads, every value of
each is there, but not every pair.
"""

from __future__ import annotations

import importlib.util
import sys
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Iterator

ROOT = Path(__file__).resolve().parent.parent.parent


@contextmanager
def script(file: Path) -> Iterator[ModuleType]:
    """A file that lies in no package, as a module."""
    spec = importlib.util.spec_from_file_location(f"script_{file.stem}", str(file))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules[spec.name]
