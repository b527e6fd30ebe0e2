"""Invariance checks for reward models, without known reference values.

Every assertion takes a callable `model(ids (B, S), attention_mask (B, S)) -> rewards (B,)`, both
arguments int64.  A module runs in eval mode, without gradients; its mode is then restored.
"""

from __future__ import annotations

import copy
import math
from contextlib import contextmanager
from typing import Any, Callable, Iterator, List, Optional, Sequence

import torch
from torch import nn

from coati_ext.errors import nearest
from coati_ext.testing.padding import Row, layouts, pad_rows, random_rows

Scorer = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

_SHOWN = 8  # differences listed in a message


def assert_padding_invariant(
    model: Scorer,
    *,
    rows: Optional[Sequence[Row]] = None,
    pad_token_id: int = 0,
    atol: float = 1e-5,
    width: Optional[int] = None,
    only: Optional[Sequence[str]] = None,
) -> None:
    """Check that the reward of a row does not depend on the position of its padding.

    Args:
        model: scores ids (B, S) with a mask (B, S).
        rows: token ids without pads; by default random rows of 1 to 14 tokens.
        pad_token_id: the id to pad with.
        atol: the largest accepted difference from the unpadded row in a batch of its own.
        width: S of the padded batches, see :func:`coati_ext.testing.layouts`.
        only: names of the layouts to check; by default all of them.

    Raises:
        AssertionError: rewards differ; names layout, row, both values and the row's mask.
        ValueError: `only` names something that is not a layout, or a row is longer than `width`.
    """
    rows = random_rows() if rows is None else rows
    batches = {name: (ids, mask) for name, ids, mask in _layouts(rows, pad_token_id, width)}
    unknown = set(only or ()) - set(batches)
    if unknown:
        name = min(unknown)
        raise ValueError(f"no layout {name}, only {', '.join(batches)}{nearest(name, batches)}")
    with _scoring(model) as score:
        alone = _alone(score, rows)
        complaints = []
        for name in batches if only is None else only:
            ids, mask = batches[name]
            where = [f"layout {name}, row {i}" for i in range(len(rows))]
            complaints += _differences(where, score(ids, mask), alone, mask, atol)
    _complain("the reward depends on padding", complaints)


def assert_batch_invariant(
    model: Scorer,
    *,
    rows: Optional[Sequence[Row]] = None,
    pad_token_id: int = 0,
    atol: float = 1e-5,
    side: str = "left",
) -> None:
    """Check that the reward of a row does not depend on the other rows of the batch.

    Scores all rows together, in reverse order, the first half, and each row with the longest one.
    Each batch is padded on `side` to its longest row.  The other arguments are those of
    :func:`assert_padding_invariant`.

    Raises:
        AssertionError: rewards differ; names batch, row, both values and the row's mask.
    """
    rows = random_rows() if rows is None else rows
    count = len(rows)
    longest = max(range(count), key=lambda i: len(rows[i]))
    batches = {
        "all rows": list(range(count)),
        "all rows in reverse": list(reversed(range(count))),
        "first half": list(range((count + 1) // 2)),
        **{f"beside the longest row, {i}": [i, longest] for i in range(count)},
    }
    with _scoring(model) as score:
        alone = _alone(score, rows)
        complaints = []
        for name, members in batches.items():
            ids, mask = pad_rows([rows[i] for i in members], pad_token_id=pad_token_id, side=side)
            where = [f"batch of {name}, row {i}" for i in members]
            expected = [alone[i] for i in members]
            complaints += _differences(where, score(ids, mask), expected, mask, atol)
    _complain("the reward depends on batch mates", complaints)


def assert_matches_sequence_classification(
    model: Any,
    *,
    rows: Optional[Sequence[Row]] = None,
    pad_token_id: int = 0,
    atol: float = 1e-5,
    only: Optional[Sequence[str]] = None,
) -> None:
    """Check the rewards against transformers' own sequence classification head.

    `model` also needs `.model` (a transformers backbone) and `.value_head` (H to 1).  The
    reference is `AutoModelForSequenceClassification` with one label and the same weights, applied
    to each unpadded row at its last token.  `model` is applied to the unpadded rows and to every
    layout, or to those in `only` (`only=()` tests without padding).

    Raises:
        AssertionError: rewards differ; names layout, row, both values and the row's mask.
        TypeError: transformers has no sequence classifier for the backbone.
    """
    rows = random_rows() if rows is None else rows
    reference = _sequence_classifier(model)
    device = _device(model)
    with torch.no_grad():
        ids = [torch.tensor([row], device=device) for row in rows]
        expected = [reference(row) for row in ids]
    with _scoring(model) as score:
        masks = [torch.ones_like(row) for row in ids]
        complaints = []
        for i, (row, mask) in enumerate(zip(ids, masks)):
            where = [f"row {i} alone"]
            complaints += _differences(where, score(row, mask), [expected[i]], mask, atol)
        for name, padded, mask in _layouts(rows, pad_token_id, None):
            if only is None or name in only:
                where = [f"layout {name}, row {i}" for i in range(len(rows))]
                complaints += _differences(where, score(padded, mask), expected, mask, atol)
    _complain("the reward is not that of sequence classification", complaints)


def _layouts(rows: Sequence[Row], pad_token_id: int, width: Optional[int]) -> Any:
    return layouts(rows, pad_token_id=pad_token_id, width=width)


@contextmanager
def _scoring(model: Scorer) -> Iterator[Scorer]:
    """Yield a scorer that checks shapes and returns CPU tensors; the model is in eval mode."""
    device = _device(model)
    was_training = isinstance(model, nn.Module) and model.training

    def score(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        rewards = model(ids.to(device), mask.to(device))
        assert tuple(rewards.shape) == (len(ids),), (
            f"rewards of shape {tuple(rewards.shape)} for ids of shape {tuple(ids.shape)}: "
            f"expected ({len(ids)},)"
        )
        return rewards.detach().float().cpu()

    if isinstance(model, nn.Module):
        model.eval()
    try:
        with torch.no_grad():
            yield score
    finally:
        if isinstance(model, nn.Module):
            model.train(was_training)


def _device(model: Any) -> torch.device:
    if isinstance(model, nn.Module):
        for parameter in model.parameters():
            return parameter.device
    return torch.device("cpu")


def _alone(score: Scorer, rows: Sequence[Row]) -> List[float]:
    rewards = []
    for row in rows:
        ids = torch.tensor([list(row)])
        rewards.append(float(score(ids, torch.ones_like(ids))[0]))
    return rewards


def _differences(
    where: Sequence[str],
    actual: torch.Tensor,
    expected: Sequence[float],
    mask: torch.Tensor,
    atol: float,
) -> List[str]:
    complaints = []
    for place, value, wanted, row in zip(where, actual.tolist(), expected, mask.tolist()):
        gap = abs(value - wanted)
        if math.isnan(gap) or gap > atol:
            bits = "".join(str(bit) for bit in row)
            complaints.append(
                f"{place}: {value:.6f}, but {wanted:.6f} alone (off by {gap:.2g}), mask {bits}"
            )
    return complaints


def _complain(what: str, complaints: Sequence[str]) -> None:
    if complaints:
        shown = "\n  ".join(complaints[:_SHOWN])
        more = len(complaints) - _SHOWN
        rest = f"\n  and {more} more" if more > 0 else ""
        raise AssertionError(f"{what}:\n  {shown}{rest}")


def _sequence_classifier(model: Any) -> Callable[[torch.Tensor], float]:
    """Map ids (1, S) to the logit of a transformers classifier with the weights of `model`."""
    from transformers import AutoModelForSequenceClassification

    backbone, head = model.model, model.value_head
    config = copy.deepcopy(backbone.config)
    config.num_labels = 1
    # Without a pad token the classifier scores the last column, not the last one unequal to pad.
    config.pad_token_id = None
    try:
        classifier = AutoModelForSequenceClassification.from_config(config)
    except ValueError as error:
        raise TypeError(f"{type(backbone).__name__} has no sequence classifier") from error
    classifier.base_model.load_state_dict(backbone.state_dict(), strict=False)
    classifier.score.load_state_dict({"weight": head.weight.detach()}, strict=True)
    classifier.to(head.weight.device, head.weight.dtype).eval()
    bias = 0.0 if head.bias is None else float(head.bias.item())

    def logit(ids: torch.Tensor) -> float:
        return float(classifier(ids, attention_mask=torch.ones_like(ids)).logits[0, 0]) + bias

    return logit
