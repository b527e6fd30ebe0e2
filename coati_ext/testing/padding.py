"""Pad the same rows in every possible layout."""

from __future__ import annotations

import random
from typing import Iterator, List, Optional, Sequence, Tuple

import torch

Row = Sequence[int]


def random_rows(
    lengths: Sequence[int] = (1, 2, 3, 5, 9, 14), *, vocab_size: int = 64, seed: int = 0
) -> List[List[int]]:
    """Return random rows of the given lengths: ordinary tokens (4 and up), then token 2 (EOS)."""
    draw = random.Random(seed)
    return [[draw.randrange(4, vocab_size) for _ in range(n - 1)] + [2] for n in lengths]


def pad_rows(
    rows: Sequence[Row], *, pad_token_id: int, side: str, width: Optional[int] = None
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask, both (B, S) int64, with all pads on one side.

    The mask is made from the lengths, not from the ids.

    Raises:
        ValueError: `side` is neither "left" nor "right", or a row is longer than `width`.
    """
    if side not in ("left", "right"):
        raise ValueError(f"side must be 'left' or 'right', not {side!r}")
    width = _width(rows, width)
    places = [width - len(row) if side == "left" else 0 for row in rows]
    return _place(
        rows, [range(at, at + len(row)) for at, row in zip(places, rows)], pad_token_id, width
    )


def layouts(
    rows: Sequence[Row], *, pad_token_id: int, width: Optional[int] = None
) -> Iterator[Tuple[str, torch.Tensor, torch.Tensor]]:
    """Yield (name, ids (B, S), mask (B, S)) for "left", "right", "both" and "interior".

    In "both" the pads of a row are split between its two ends.  In "interior" they form one block
    inside the row, or follow it if it has only one token.  Positions are random with a fixed seed.
    `width` is S; by default every row has some padding.

    Raises:
        ValueError: a row is longer than `width`.
    """
    width = _width(rows, width, spare=8)
    draw = random.Random(0)
    for name in ("left", "right"):
        ids, mask = pad_rows(rows, pad_token_id=pad_token_id, side=name, width=width)
        yield name, ids, mask
    both, interior = [], []
    for row in rows:
        pads, n = width - len(row), len(row)
        start = draw.randint(min(1, pads), max(pads - 1, 0))
        both.append(range(start, start + n))
        cut = draw.randint(1, n - 1) if n > 1 else n
        interior.append([*range(cut), *range(cut + pads, n + pads)])
    yield ("both", *_place(rows, both, pad_token_id, width))
    yield ("interior", *_place(rows, interior, pad_token_id, width))


def _width(rows: Sequence[Row], width: Optional[int], spare: int = 0) -> int:
    longest = max(len(row) for row in rows)
    if width is not None and width < longest:
        raise ValueError(f"a row of {longest} tokens does not fit in {width} columns")
    return longest + spare if width is None else width


def _place(
    rows: Sequence[Row], places: Sequence[Sequence[int]], pad_token_id: int, width: int
) -> Tuple[torch.Tensor, torch.Tensor]:
    ids = torch.full((len(rows), width), pad_token_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, (row, columns) in enumerate(zip(rows, places)):
        ids[i, list(columns)] = torch.tensor(row, dtype=torch.long)
        mask[i, list(columns)] = 1
    return ids, mask
