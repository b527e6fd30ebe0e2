"""TOML on every Python: the standard library's reader, or tomli before 3.11."""

from __future__ import annotations

import re
import sys
from typing import Any, Dict

_WORDS = {"True": "true", "False": "false"}


def parse_toml(text: str) -> Dict[str, Any]:
    """The content of a TOML text.

    Raises:
        ValueError: it is not TOML; where a text lacks its quotes, the message says so.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        content: Dict[str, Any] = tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{error}{_hint(text, str(error))}") from error
    return content


def _hint(text: str, problem: str) -> str:
    """What to write instead, where the parser has stumbled over a value without quotes."""
    place = re.search(r"at line (\d+)", problem)
    line = text.split("\n")[int(place.group(1)) - 1] if place else ""
    key, _, value = line.partition("=")
    word = value.partition("#")[0].strip()
    if not re.fullmatch(r"[A-Za-z_./][\w./-]{0,60}", word):
        return ""
    if word in _WORDS:
        return f": write {key.strip()} = {_WORDS[word]}"
    return f': quote texts, as in {key.strip()} = "{word}"'
