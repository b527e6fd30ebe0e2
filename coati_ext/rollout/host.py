"""What the host knows of tensors on the device, so that each is read once.

Which rows share a prompt, and where a row ends, decides the shapes of what is computed, so the host
must know ids and masks. Those that code of ours derives from known ones are remembered with them;
others cost a copy from the device, and so does one that was written to since. On the CPU nothing is
copied.

Letters: B rows, S sequence columns.
"""

from __future__ import annotations

from typing import Any, Dict, Sequence, Tuple
from weakref import ref

import numpy
import torch
from torch import Tensor

from coati_ext import tensors

_known: Dict[int, Tuple[Any, int, numpy.ndarray]] = {}  # the tensor, its version, its content


def array_of(tensor: Tensor) -> numpy.ndarray:
    """An integer or bool tensor as an array of the host; read from the device if not known."""
    if _shared(tensor):
        return tensor.numpy()
    if not _knows(tensor):
        learn(tensor)
    return _known[id(tensor)][2]


def learn(*items: Tensor) -> None:
    """Read tensors of B rows from their device by one copy, and remember them."""
    if all(_shared(item) for item in items):
        return
    array = read(torch.cat([item.long() for item in items], dim=1))
    ends = numpy.cumsum([item.size(1) for item in items])[:-1]
    for item, part in zip(items, numpy.split(array, ends, axis=1)):
        remember(item, part != 0 if item.dtype == torch.bool else part)


def remember(tensor: Tensor, array: numpy.ndarray) -> None:
    """Remember what a tensor holds, as long as it lives and is not written to.

    What is written past autograd, as by ``tensor.data``, is not noticed.
    """
    key = id(tensor)

    def forget(gone: Any) -> None:
        if key in _known and _known[key][0] is gone:
            del _known[key]

    _known[key] = (ref(tensor, forget), _version(tensor), array)


def remember_rows(parts: Sequence[Tensor], wholes: Sequence[Tensor], rows: slice) -> None:
    """Remember parts that are rows of known tensors."""
    for part, whole in zip(parts, wholes):
        if _knows(whole):
            remember(part, _known[id(whole)][2][rows])


def compact(input_ids: Tensor, mask: Tensor) -> Tuple[Tensor, Tensor]:
    """Left-padded rows without gaps, and without columns that are padding in every row.

    The host knows what it returns. Under ``torch.compile`` all columns stay.

    Args:
        input_ids: (B, S) integer.
        mask: (B, S) bool, true for real tokens.
    """
    if tensors.is_compiling():
        return tensors.left_frame(input_ids, mask)
    learn(*(item for item in (input_ids, mask) if not _knows(item)))
    ids, real = array_of(input_ids), array_of(mask)
    unused = real.shape[1] - int(real.sum(axis=1).max())
    pair = input_ids, mask
    if (real[:, 1:] < real[:, :-1]).any():  # a pad after a real token
        pair = tensors.left_frame(*pair)
    moved, moved_mask = (item[:, unused:] for item in pair)
    if not _shared(input_ids):
        order = real.argsort(axis=1, kind="stable")[:, unused:]
        remember(moved, numpy.take_along_axis(ids, order, axis=1))
        remember(moved_mask, numpy.take_along_axis(real, order, axis=1))
    return moved, moved_mask


def _shared(tensor: Tensor) -> bool:
    """Whether NumPy sees the tensor's own memory, so that nothing has to be copied."""
    return tensor.is_cpu


def _knows(tensor: Tensor) -> bool:
    found = _known.get(id(tensor))
    return found is not None and found[0]() is tensor and found[1] == _version(tensor) >= 0


def _version(tensor: Tensor) -> int:
    """How often a tensor was written to; -1 where nobody counts, as in inference mode."""
    return -1 if tensor.is_inference() else tensor._version


def read(numbers: Tensor) -> numpy.ndarray:
    """Copy a tensor to the host, which waits for the device: the only place where we do."""
    array: numpy.ndarray = numbers.cpu().numpy()
    return array
