"""JSON from others, read strictly: what a program might read otherwise is refused."""

from __future__ import annotations

import json
import re
from typing import Any, Dict, List, Tuple

_DEEPEST = 100  # no file of ours nests deeper than 5
_MARKS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]')


def parse_json(text: str) -> Any:
    """The content of a JSON text.

    Raises:
        ValueError: it is not JSON, nests too deeply, has a key twice, or a number that is none.
    """
    # Looked at first: old Pythons may not survive a stack that overflows.
    if _depth(text) > _DEEPEST:
        raise ValueError("it is nested too deeply")
    return json.loads(text, object_pairs_hook=_each_once, parse_constant=_no_number)


def _depth(text: str) -> int:
    """How deep the lists and objects of a JSON text nest."""
    depth = most = 0
    for mark in _MARKS.findall(text):
        depth += (mark in "[{") - (mark in "]}")
        most = max(most, depth)
    return most


def _each_once(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice[:80]!r} comes twice")
    return content


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")
