"""The prefix tree of a batch: which tokens have to be computed, and which of them each row reads.

A node is a run of tokens that the same rows share. A token attends to the runs above its own and,
causally, to its own. Everything here is NumPy on the host.

Letters: B rows, S sequence columns, T computed tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Sequence, Tuple

import numpy

# Sharing fewer tokens than this costs more, in one more call of the attention, than it saves.
_WORTH = 16


@dataclass(frozen=True)
class Node:
    """A run of tokens."""

    start: int
    """Its first token among the T."""
    length: int
    """How many tokens it has."""
    above: Tuple[int, ...]
    """The nodes before it, from the first token of the row on."""


@dataclass(frozen=True)
class Tree:
    """The runs of a batch, in the order in which their tokens are computed."""

    nodes: Tuple[Node, ...]
    source: numpy.ndarray
    """(T,) the index into the B x S tokens of the batch of each computed token."""
    target: numpy.ndarray
    """(B, S) which computed token each real token is; 0 for pads."""


def prefix_tree(ids: numpy.ndarray, mask: numpy.ndarray, share: bool) -> Tree:
    """The tree of a batch; without ``share`` every row is a run of its own.

    Args:
        ids: (B, S) integer.
        mask: (B, S) bool, true for real tokens.
        share: whether rows share what is equal at their head.
    """
    columns = [numpy.flatnonzero(row) for row in mask]
    rows = [line[where] for line, where in zip(ids, columns)]
    growing = _Growing(rows)
    if share:
        order = sorted(range(len(rows)), key=lambda row: tuple(rows[row].tolist()))
        common = [0] + [_common(rows[a], rows[b]) for a, b in zip(order, order[1:])]
        growing.add(order, common, 0, ())
    else:
        for row in range(len(rows)):
            growing.leaf(row, 0, ())
    target = numpy.zeros(mask.shape, dtype=numpy.int64)
    for row, pieces in enumerate(growing.pieces):
        target[row, columns[row]] = numpy.concatenate(pieces)
    source = numpy.concatenate(
        [row * mask.shape[1] + columns[row][first:end] for row, first, end in growing.spans]
    )
    return Tree(tuple(growing.nodes), source, target)


def unique_tokens(ids: numpy.ndarray, mask: numpy.ndarray) -> int:
    """How many tokens of a batch have to be computed if what rows share is computed once."""
    return len(prefix_tree(ids, mask, share=True).source)


class _Growing:
    def __init__(self, rows: Sequence[numpy.ndarray]) -> None:
        self.rows = rows
        self.nodes: List[Node] = []
        self.spans: List[Tuple[int, int, int]] = []  # row, first token, end, of each node
        self.pieces: List[List[numpy.ndarray]] = [[] for _ in rows]
        self.size = 0

    def add(self, order: List[int], common: List[int], depth: int, above: Tuple[int, ...]) -> None:
        """Rows in lexicographic order, equal in ``depth`` tokens; each has ``common`` with the one
        before it."""
        if len(order) == 1:
            self.leaf(order[0], depth, above)
            return
        shared = min(common[1:])
        if (shared - depth) * (len(order) - 1) >= _WORTH:
            above = (*above, self._node(order, depth, shared, above))
            depth = shared
        starts = [0, *(at for at in range(1, len(order)) if common[at] == shared), len(order)]
        for first, end in zip(starts, starts[1:]):
            self.add(order[first:end], common[first:end], depth, above)

    def leaf(self, row: int, depth: int, above: Tuple[int, ...]) -> None:
        """The rest of a row, if there is one."""
        if len(self.rows[row]) > depth:
            self._node([row], depth, len(self.rows[row]), above)

    def _node(self, order: Sequence[int], first: int, end: int, above: Tuple[int, ...]) -> int:
        self.nodes.append(Node(self.size, end - first, above))
        self.spans.append((order[0], first, end))
        for row in order:
            self.pieces[row].append(numpy.arange(self.size, self.size + end - first))
        self.size += end - first
        return len(self.nodes) - 1


def _common(one: numpy.ndarray, other: numpy.ndarray) -> int:
    width = min(len(one), len(other))
    differ = one[:width] != other[:width]
    return int(differ.argmax()) if differ.any() else width
