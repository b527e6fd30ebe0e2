"""The ``--coati PATH`` option of tests that run on stand-ins or on a real coati.

It is installed as a pytest plugin. If only a conftest declared the option, pytest would take PATH
for the folder to test, and would then not load that conftest.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any


def pytest_addoption(parser: Any) -> None:
    """Declare the option, unless it is declared already; ``COATI_SOURCE`` is its default."""
    # The conftest of a checkout declares it too, for use without installation.
    with suppress(ValueError):
        parser.addoption(
            "--coati",
            metavar="PATH",
            default=os.environ.get("COATI_SOURCE"),
            help="run on the real coati in this folder instead of on coati-ext's stand-ins",
        )
