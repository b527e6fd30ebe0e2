"""Every level gives the numbers of each row alone, and their gradients."""

from __future__ import annotations

import pytest
import torch
import transformers

from coati_ext.patches.token_saving import levels
from coati_ext.tensors import left_frame, position_ids, token_mask
from coati_ext.testing import families, layouts, tiny_config

PROMPT = list(range(3, 30))
ROWS = [
    [1, *PROMPT, 31, 32, 33, 2],
    [1, *PROMPT, 31, 32, 40, 41, 42, 43, 2],
    [1, *PROMPT],  # a row that is the head of others
    [1, 9, 8, 7, 2],
    [1, *PROMPT, 31, 32, 33, 2],  # twice
    [1, *PROMPT[:20], 50, 51, 2],
]
PACKABLE = {"gpt2", "llama", "mistral", "qwen2", "gpt_neox"}


def backbone_of(family, **options):
    torch.manual_seed(0)
    return transformers.AutoModel.from_config(tiny_config(family, **options))


def states(level, backbone, ids, mask):
    """The hidden states of the real tokens of each row, in order."""
    ids, mask = left_frame(ids, token_mask(ids, mask))
    found = getattr(levels, level)(backbone, ids, mask, position_ids(mask))
    assert found.shape[:2] == ids.shape
    return [row[real] for row, real in zip(found, mask)]


def alone(backbone, rows=ROWS):
    ids = [torch.tensor([row]) for row in rows]
    return [backbone(it, attention_mask=torch.ones_like(it)).last_hidden_state[0] for it in ids]


def gradients(backbone, found):
    backbone.zero_grad()
    torch.manual_seed(1)
    sum((item * torch.randn_like(item)).sum() for item in found).backward()
    return [p.grad.clone() for p in backbone.parameters() if p.grad is not None]


def levels_of(family):
    probe = backbone_of(family)
    levels.auto(
        probe,
        torch.tensor([[1, 2], [1, 3]]),
        torch.tensor([[True] * 2, [False, True]]),
        torch.tensor([[0, 1], [0, 0]]),
    )
    highest, _ = levels.highest(probe)
    return ["off", "groups", "auto"] + ["packed", "prefix"] * (highest == "prefix")


@pytest.mark.parametrize("family", families())
def test_values_and_gradients_are_those_of_each_row_alone(family):
    backbone = backbone_of(family)
    expected = alone(backbone)
    wanted = gradients(backbone, expected)
    largest = max(float(item.abs().max()) for item in wanted)
    for level in levels_of(family):
        for name, ids, mask in layouts(ROWS, pad_token_id=0):
            found = states(level, backbone, ids, mask)
            for one, other in zip(found, expected):
                torch.testing.assert_close(one, other, atol=2e-5, rtol=0, msg=f"{level} {name}")
        for one, other in zip(gradients(backbone, found), wanted):
            assert float((one - other).abs().max()) <= 1e-5 * largest, level


@pytest.mark.parametrize("family", families())
def test_no_level_sees_what_a_pad_holds(family):
    backbone = backbone_of(family)
    (_, ids, mask), *_ = layouts(ROWS, pad_token_id=0)
    other = ids.masked_fill(mask == 0, 17)
    for level in levels_of(family):
        for one, two in zip(
            states(level, backbone, ids, mask), states(level, backbone, other, mask)
        ):
            assert torch.equal(one, two)
