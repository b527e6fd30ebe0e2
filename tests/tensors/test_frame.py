"""The one frame: compaction, masks and positions, for any mask."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coati_ext import tensors
from coati_ext.tensors import left_frame, position_ids, token_mask
from helpers.host_reads import HostReads

masks = st.tuples(st.integers(1, 5), st.integers(1, 12)).flatmap(
    lambda shape: st.lists(
        st.lists(st.booleans(), min_size=shape[1], max_size=shape[1]).filter(any),
        min_size=shape[0],
        max_size=shape[0],
    )
)


@given(masks)
def test_left_frame_keeps_each_rows_tokens_in_order_at_its_right_end(mask):
    mask = torch.tensor(mask)
    ids = torch.arange(mask.numel()).view(mask.shape)
    framed, framed_mask = left_frame(ids, mask)
    for row in range(len(ids)):
        real = ids[row][mask[row]]
        assert framed[row][-len(real) :].equal(real)
        assert framed_mask[row].tolist() == [False] * (ids.size(1) - len(real)) + [True] * len(real)
        assert sorted(framed[row].tolist()) == ids[row].tolist()  # a permutation: nothing is lost


@given(masks)
def test_left_frame_twice_is_once_and_leaves_left_padded_rows_alone(mask):
    mask = torch.tensor(mask)
    framed, framed_mask = left_frame(torch.arange(mask.numel()).view(mask.shape), mask)
    again, again_mask = left_frame(framed, framed_mask)
    assert again.equal(framed)
    assert again_mask.equal(framed_mask)


@given(masks)
def test_positions_count_the_real_tokens_of_the_row(mask):
    expected = np.clip(np.cumsum(np.array(mask), axis=1) - 1, 0, None)
    assert position_ids(torch.tensor(mask)).tolist() == expected.tolist()


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.int64, torch.int32, torch.uint8, torch.float32, torch.float16]
)
def test_a_mask_of_any_dtype_says_the_same(dtype):
    mask = torch.tensor([[0, 1, 1], [1, 1, 0]])
    assert token_mask(torch.zeros(2, 3, dtype=torch.long), mask.to(dtype)).equal(mask.bool())


def test_no_mask_means_that_every_token_is_real():
    assert token_mask(torch.zeros(2, 3, dtype=torch.long), None).all()


def test_a_mask_of_another_shape_is_refused_with_both_shapes():
    with pytest.raises(ValueError, match=r"\(2, 4\).*\(2, 3\)"):
        token_mask(torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 4))


def test_ids_that_are_not_rows_are_refused():
    with pytest.raises(ValueError, match=r"\(3,\), expected \(B, S\)"):
        token_mask(torch.zeros(3, dtype=torch.long), None)


def test_rows_without_a_real_token_are_named():
    mask = torch.tensor([[1, 1], [0, 0], [0, 1], [0, 0]])
    with pytest.raises(ValueError, match=r"row 1, 3 of attention_mask \(4, 2\)"):
        token_mask(torch.zeros(4, 2, dtype=torch.long), mask)


def test_the_frame_reads_nothing_back():
    ids = torch.randint(0, 9, (4, 7))
    mask = torch.tensor([[0, 1, 1, 0, 1, 1, 0]] * 4)
    with HostReads() as reads:
        real = token_mask(ids, mask)
        _, framed = left_frame(ids, real)
        position_ids(framed)
    assert reads.seen == []


class TestColumns:
    def test_trimmed_drops_the_columns_that_are_padding_in_every_row(self):
        ids = torch.tensor([[0, 0, 5, 6], [0, 4, 0, 6]])
        mask = torch.tensor([[False, False, True, True], [False, True, True, True]])
        got, real = tensors.trimmed(ids, mask)
        assert got.tolist() == [[0, 5, 6], [4, 0, 6]]
        assert real.equal(mask[:, 1:])

    def test_trimmed_keeps_a_full_batch(self):
        ids = torch.tensor([[3, 4], [5, 6]])
        got, real = tensors.trimmed(ids, torch.ones(2, 2, dtype=torch.bool))
        assert got.equal(ids)
        assert real.all()

    @pytest.mark.parametrize(
        ("row", "real"),
        [
            ([0, 0, 5, 6], [0, 0, 1, 1]),
            ([5, 6, 0, 0], [1, 1, 0, 0]),
            ([0, 5, 0, 6, 0], [0, 1, 1, 1, 0]),  # a pad inside is a sampled or a separating one
            ([5, 6], [1, 1]),
            ([0, 0], [0, 0]),
        ],
    )
    def test_without_outer_pads_takes_the_two_ends_off(self, row, real):
        assert tensors.without_outer_pads(torch.tensor([row]), 0).long().tolist() == [real]

    def test_without_a_pad_token_every_token_is_real(self):
        assert tensors.without_outer_pads(torch.tensor([[0, 1]]), None).all()


def test_every_value_of_a_mask_but_zero_is_a_real_token():
    """As an integer mask that was inverted bit by bit has it: -1 for 0."""
    pads = torch.tensor([[-1, 0, 0], [0, 0, -1]], dtype=torch.int8)
    assert token_mask(torch.zeros(2, 3, dtype=torch.long), ~pads).equal(pads == 0)
