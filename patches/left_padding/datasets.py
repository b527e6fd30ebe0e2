"""``__init__`` of the datasets of G1 and G2, which tokenizes all rows."""

from __future__ import annotations

from inspect import signature
from typing import Any, Callable

from .tokenizers import left_sided


def tokenize_left(original: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """Build a G1 or G2 dataset while its tokenizer pads and truncates on the left."""
    with left_sided(signature(original).bind(*args, **kwargs).arguments["tokenizer"]):
        original(*args, **kwargs)
