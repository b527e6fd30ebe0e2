"""JSON from others, read strictly: what a program might read otherwise is refused."""

from __future__ import annotations

import json
from typing import Any, Dict, List, Tuple


def parse_json(text: str) -> Any:
    """The content of a JSON text.

    Raises:
        ValueError: it is not JSON, nests too deeply, has a key twice, or a number that is none.
    """
    try:
        return json.loads(text, object_pairs_hook=_each_once, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _each_once(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice[:80]!r} comes twice")
    return content


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")
