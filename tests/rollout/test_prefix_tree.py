"""The prefix tree holds every token of every row once, in the row's own context."""

from __future__ import annotations

import numpy
from hypothesis import given
from hypothesis import strategies as st

from coati_ext.rollout.packing import tree

FEW = st.lists(st.integers(0, 2), min_size=1, max_size=60)
BATCHES = st.lists(FEW, min_size=1, max_size=8)


def batch(rows, heads, padded):
    """Rows, some with a long common head, with pads wherever ``padded`` says."""
    rows = [heads[len(row) % len(heads)] + row for row in rows]
    width = max(map(len, rows)) + padded
    ids, mask = numpy.full((len(rows), width), 7), numpy.zeros((len(rows), width), dtype=bool)
    for index, row in enumerate(rows):
        first = (index * 3) % (width - len(row) + 1)
        ids[index, first : first + len(row)] = row
        mask[index, first : first + len(row)] = True
    return rows, ids, mask


@given(BATCHES, st.lists(FEW, min_size=1, max_size=3), st.integers(0, 5))
def test_each_row_reads_its_own_tokens(rows, heads, padded):
    rows, ids, mask = batch(rows, [head * 2 for head in heads], padded)
    for share in (False, True):
        made = tree.prefix_tree(ids, mask, share)
        for row, real, target in zip(rows, mask, made.target):
            read = target[real]
            assert ids.reshape(-1)[made.source[read]].tolist() == row
            # The nodes of a row are each other's context, from its first token to its last.
            path = [
                index
                for index, node in enumerate(made.nodes)
                if any(node.start <= at < node.start + node.length for at in read)
            ]
            last = max(path, key=lambda index: len(made.nodes[index].above))
            assert sorted(path) == sorted((*made.nodes[last].above, last))
            covered = [
                at
                for index in (*made.nodes[last].above, last)
                for at in range(
                    made.nodes[index].start, made.nodes[index].start + made.nodes[index].length
                )
            ]
            assert covered[: len(row)] == read.tolist()
        assert sum(node.length for node in made.nodes) == len(made.source)


def test_a_shared_prompt_is_computed_once():
    prompt, answers = list(range(100, 140)), [[1, 2], [3, 4, 5], [1, 2]]
    _, ids, mask = batch(answers, [prompt], 3)
    assert len(tree.prefix_tree(ids, mask, share=False).source) == 3 * 40 + 7
    # The first and the last row are equal, but too short beyond the prompt to be worth a node.
    assert len(tree.prefix_tree(ids, mask, share=True).source) == 40 + 7
    assert tree.unique_tokens(ids, mask) == 47


def test_a_bos_token_alone_is_not_shared():
    _, ids, mask = batch([[2, 3], [4, 5]], [[1]], 0)
    assert len(tree.prefix_tree(ids, mask, share=True).nodes) == 2


def test_turns_of_a_conversation_are_a_chain():
    turns = [list(range(start, start + 30)) for start in (0, 100, 200)]
    rows = [turns[0], turns[0] + turns[1], turns[0] + turns[1] + turns[2]]
    _, ids, mask = batch(rows, [[]], 0)
    made = tree.prefix_tree(ids, mask, share=True)
    assert [node.above for node in made.nodes] == [(), (0,), (0, 1)]
    assert len(made.source) == 90
