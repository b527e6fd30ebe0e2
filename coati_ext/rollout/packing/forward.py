"""One forward over real tokens only, and one over groups of rows of like length.

Letters: B rows, S sequence columns, T computed tokens, H hidden.
"""

from __future__ import annotations

from typing import Any, List

import numpy
import torch
from torch import Tensor

from coati_ext.active import announce
from coati_ext.rollout.host import array_of
from coati_ext.rollout.models import attributes, frame_inputs
from coati_ext.rollout.packing.attending import NotPackable, attending
from coati_ext.rollout.packing.segments import Segments
from coati_ext.rollout.packing.tree import prefix_tree

_GROUPS = 4


def packed_states(
    backbone: Any,
    input_ids: Tensor,
    mask: Tensor,
    position_ids: Tensor,
    share: bool,
    dense: bool = True,
) -> Tensor:
    """Hidden states (B, S, H) from one forward over the real tokens; those of pads are arbitrary.

    Args:
        backbone: a transformers model without a head.
        input_ids: (B, S) integer.
        mask: (B, S) bool, true for real tokens.
        position_ids: (B, S) int64.
        share: whether what rows share at their head is computed once.
        dense: whether rows without pads go through the backbone as they are, which does not show
            how it attends.

    Raises:
        NotPackable: the backbone attends in a way that is not known here.
    """
    real = array_of(mask)
    tree = prefix_tree(array_of(input_ids), real, share)
    if dense and len(tree.source) == input_ids.numel():
        hidden = _unmasked(backbone, input_ids, position_ids)
        tell_computed(backbone, input_ids.numel(), real)
        return hidden
    source, target = (
        torch.from_numpy(item).to(input_ids.device) for item in (tree.source, tree.target)
    )
    segments = Segments(tree.nodes)
    with attending(backbone, segments):
        hidden = _unmasked(
            backbone,
            *(item.reshape(1, -1).index_select(1, source) for item in (input_ids, position_ids)),
        )
    if segments.asked != backbone.config.num_hidden_layers:
        raise NotPackable(
            f"{segments.asked} of its {backbone.config.num_hidden_layers} layers attend by "
            "scaled_dot_product_attention"
        )
    tell_computed(backbone, len(tree.source), real)
    return _unpacked(hidden.squeeze(0), target)


def grouped_states(backbone: Any, input_ids: Tensor, mask: Tensor) -> Tensor:
    """Hidden states (B, S, H) of left-padded rows, in up to four forwards of rows of like length.

    How many depends on B alone, so that all ranks make as many.

    Args:
        backbone: a transformers model without a head.
        input_ids: (B, S) integer.
        mask: (B, S) bool, true for real tokens.
    """
    real = array_of(mask)
    rows, columns = real.shape
    lengths = real.sum(axis=1)
    order = lengths.argsort(kind="stable")
    where = numpy.zeros((rows, columns), dtype=numpy.int64)
    found, size = [], 0
    for group in numpy.split(order, _cuts(lengths[order], min(_GROUPS, rows))):
        width = int(lengths[group].max())
        # A column of each row's real tokens, at the right end of the group's frame.
        source = numpy.zeros((len(group), width), dtype=numpy.int64)
        part = numpy.arange(width) >= width - lengths[group][:, None]
        source[part] = numpy.flatnonzero(real[group]) % columns + (
            group.repeat(lengths[group]) * columns
        )
        where.reshape(-1)[source[part]] = size + numpy.flatnonzero(part)
        index = torch.from_numpy(source).to(input_ids.device)
        ids = input_ids.reshape(-1).index_select(0, index.reshape(-1)).view_as(index)
        inputs = frame_inputs(backbone, torch.from_numpy(part).to(input_ids.device))
        found.append(backbone(ids, **inputs)["last_hidden_state"].flatten(0, 1))
        size += source.size
    tell_computed(backbone, size, real)
    return _unpacked(torch.cat(found), torch.from_numpy(where).to(input_ids.device))


def tell_computed(backbone: Any, computed: int, real: numpy.ndarray) -> None:
    """Tell the observers how many tokens were computed for a mask (B, S) of real ones."""
    announce(
        "tokens_computed",
        backbone=backbone,
        computed=computed,
        real=int(real.sum()),
        columns=real.size,
    )


def _cuts(lengths: numpy.ndarray, groups: int) -> List[int]:
    """Where to cut rows, sorted by length, into groups of the fewest columns altogether."""
    rows = len(lengths)
    ends = numpy.arange(1, rows + 1)
    cost = lengths * ends  # of the first rows as one group
    before: List[numpy.ndarray] = []
    for _ in range(groups - 1):
        # with[i, j]: rows i+1 .. j are one more group
        with_one = cost[:, None] + (ends[None, :] - ends[:, None]) * lengths[None, :]
        with_one = numpy.where(ends[:, None] < ends[None, :], with_one, numpy.iinfo(int).max // 4)
        before.append(with_one.argmin(axis=0))
        cost = with_one.min(axis=0)
    cuts, row = [], rows - 1
    for best in reversed(before):
        row = int(best[row])
        cuts.append(row + 1)
    return cuts[::-1]


def _unmasked(backbone: Any, input_ids: Tensor, position_ids: Tensor) -> Tensor:
    """Of rows without pads, which need no mask."""
    # Without one a model may read the ids from the device, to warn of pads among them.
    warn = "warn_if_padding_and_no_attention_mask"
    silent = {warn: lambda *_, **__: None} if hasattr(backbone, warn) else {}
    with attributes(backbone, **silent):
        inputs = frame_inputs(backbone, None, position_ids)
        hidden: Tensor = backbone(input_ids, **inputs)["last_hidden_state"]
    return hidden


def _unpacked(hidden: Tensor, target: Tensor) -> Tensor:
    """(B, S, H) from computed tokens (T, H) and which of them each column is (B, S)."""
    return hidden.index_select(0, target.reshape(-1)).view(*target.shape, hidden.size(-1))
