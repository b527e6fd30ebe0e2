"""The ``--coati PATH`` option of tests that run on stand-ins or on a real coati.

Installed as a pytest plugin, because pytest takes the PATH of an option that it learns of from a
conftest for the folder to test, and then does not read that conftest.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any


def pytest_addoption(parser: Any) -> None:
    """Declare the option, unless it is declared already; ``COATI_SOURCE`` is its default."""
    # A checkout's conftest declares it too, for when no plugin is installed.
    with suppress(ValueError):
        parser.addoption(
            "--coati",
            metavar="PATH",
            default=os.environ.get("COATI_SOURCE"),
            help="run on the real coati in this folder instead of on coati-ext's stand-ins",
        )
