"""Make a tokenizer left-sided while upstream's code uses it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Iterator


@contextmanager
def left_sided(tokenizer: Any) -> Iterator[None]:
    """Make a Hugging Face tokenizer pad and truncate on the left inside a ``with`` block."""
    names = ("padding_side", "truncation_side")
    if not all(hasattr(tokenizer, name) for name in names):
        raise TypeError(
            f"{type(tokenizer).__name__} cannot pad or cut at the head: expected a Hugging Face "
            f"tokenizer with {' and '.join(names)}"
        )
    sides = {name: getattr(tokenizer, name) for name in names}
    try:
        for name in sides:
            setattr(tokenizer, name, "left")
        yield
    finally:
        for name, side in sides.items():
            setattr(tokenizer, name, side)
