"""TOML on every Python: the standard library's reader, or tomli before 3.11."""

from __future__ import annotations

import sys
from typing import Any, Dict


def parse_toml(text: str) -> Dict[str, Any]:
    """The content of a TOML text.

    Raises:
        ValueError: it is not TOML.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    content: Dict[str, Any] = tomllib.loads(text)
    return content
