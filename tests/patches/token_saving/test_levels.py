"""Every level gives the numbers of each row alone, and their gradients."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import transformers

import coati_ext
from coati_ext import active
from coati_ext.bench import measure
from coati_ext.patches.token_saving import levels
from coati_ext.patches.token_saving.options import Options
from coati_ext.plan import make_plan
from coati_ext.rollout.packing import attending
from coati_ext.rollout.packing.attending import NotPackable
from coati_ext.tensors import left_frame, position_ids, token_mask
from coati_ext.testing import assert_padding_invariant, families, layouts, models, tiny_config

PROMPT = list(range(3, 30))
ROWS = [
    [1, *PROMPT, 31, 32, 33, 2],
    [1, *PROMPT, 31, 32, 40, 41, 42, 43, 2],
    [1, *PROMPT],  # a row that is the head of others
    [1, 9, 8, 7, 2],
    [1, *PROMPT, 31, 32, 33, 2],  # twice
    [1, *PROMPT[:20], 50, 51, 2],
]


@pytest.fixture(autouse=True)
def set_to(monkeypatch):
    """Set the options of the patch, which are the default ones at first."""

    def setting(**given):
        monkeypatch.setitem(active._options, "token_saving", Options(**given))

    setting()
    return setting


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


def test_hidden_states_of_another_size_than_the_layers(upstream, monkeypatch):
    """As of OPT-350m, which projects them to the size of its embeddings."""
    config = tiny_config("opt")
    config.word_embed_proj_dim = 16
    monkeypatch.setattr(models, "tiny_config", lambda family: config)
    model = models.tiny_reward_model("opt")
    assert model.value_head.in_features == 16
    for level in levels_of("opt"):
        with coati_ext.applied({"token_saving": {"level": level}}):
            assert_padding_invariant(model, rows=ROWS, atol=1e-5)


# --- what a backbone allows ----------------------------------------------------------------------


def padded_batch(rows=ROWS):
    _, ids, mask = next(layouts(rows, pad_token_id=0))
    return ids, mask


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("level", ["groups", "packed", "prefix", "auto"])
def test_gradient_checkpointing_gives_the_same_gradients(family, level):
    """The recomputation in the backward attends as the forward did, after another forward."""
    backbone = backbone_of(family)
    wanted = gradients(backbone, alone(backbone))
    backbone.train()
    backbone.gradient_checkpointing_enable()
    backbone.enable_input_require_grads()
    first = states(level, backbone, *padded_batch())
    states(level, backbone, *padded_batch(ROWS[:3]))
    largest = max(float(item.abs().max()) for item in wanted)
    for one, other in zip(gradients(backbone, first), wanted):
        assert float((one - other).abs().max()) <= 1e-5 * largest


def test_rows_that_share_a_prompt_do_not_share_dropout():
    backbone = backbone_of("gpt2")
    assert levels.highest(backbone)[0] == "prefix"
    backbone.h[0].attn.resid_dropout.p = 0.1
    assert levels.highest(backbone.eval())[0] == "prefix"
    assert levels.highest(backbone.train())[0] == "packed"
    twice = [ROWS[0], ROWS[0]]
    first, second = states("auto", backbone, *padded_batch(twice))
    assert not torch.equal(first, second)


def test_an_unknown_attention_is_computed_by_groups_and_told(caplog):
    """One that never asks PyTorch for attention, as seen by the count of layers."""
    backbone = backbone_of("gpt_neox")
    expected = alone(backbone)
    backbone.config.num_hidden_layers = 3  # as if one layer mixed its tokens in another way
    with pytest.raises(NotPackable, match="2 of its 3 layers"):
        states("prefix", backbone, *padded_batch())
    with caplog.at_level("INFO"):
        for one, other in zip(states("auto", backbone, *padded_batch()), expected):
            torch.testing.assert_close(one, other, atol=2e-5, rtol=0)
    assert levels.highest(backbone)[0] == "groups"
    assert "token_saving computes GPTNeoXModel by groups: 2 of its 3 layers" in caplog.text


def test_the_report_says_level_and_reason(upstream):
    first, second = backbone_of("llama"), backbone_of("bloom")
    told = {
        "token_saving computes LlamaModel by prefix",
        "token_saving computes BloomModel by groups: it takes no position ids",
    }
    with coati_ext.applied():
        for backbone in (first, second, second):
            states("auto", backbone, *padded_batch())
        assert told <= set(coati_ext.status().notes)
    with coati_ext.applied({"token_saving": {"level": "groups"}}) as report:
        assert not told & set(report.notes)


@pytest.mark.parametrize("known", [True, False])
def test_an_unknown_attention_takes_as_many_forwards_on_each_rank(known):
    """Those of a rank whose rows have no pads, and of one that can see how the backbone attends."""
    full, padded = [[1] * 9] * 6, [[1] * length for length in range(3, 9)]
    made = []
    for rows in (full, padded):
        backbone, calls = backbone_of("gpt_neox"), []
        backbone.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        backbone.config.num_hidden_layers += not known
        for _ in range(3):
            states("auto", backbone, *padded_batch(rows))
            calls.append(0)
        made.append(calls)
        assert levels.highest(backbone)[0] == ("prefix" if known else "groups")
    once = [1, 0] if known else [1] * 4 + [0]
    assert made == [([] if known else [1]) + once * 3] * 2


def test_what_could_be_packed_is_an_error_where_it_cannot():
    """Other ranks do not know, and would wait for a rank that computed groups instead."""
    backbone = backbone_of("llama")
    states("auto", backbone, *padded_batch())
    backbone.config.num_hidden_layers += 1
    with pytest.raises(NotPackable, match="2 of its 3 layers"):
        states("auto", backbone, *padded_batch())


@pytest.mark.parametrize("level", ["groups", "packed", "prefix", "auto"])
def test_the_allocator_is_warmed_up_once_and_no_number_moves(level, set_to):
    set_to(warm_up=100)
    backbone, tokens = backbone_of("llama").eval(), []
    backbone.embed_tokens.register_forward_hook(lambda *call: tokens.append(call[1][0].numel()))

    def step(training=True):
        tokens.clear()
        found = states(level, backbone.train(training), *padded_batch())
        return sum(tokens), found, gradients(backbone, found)

    before, expected, wanted = step(training=False)
    with torch.no_grad():
        states(level, backbone.train(), *padded_batch())
    warm, found, got = step()
    after, _, _ = step()
    # With one more row, rows may be grouped otherwise.
    assert warm > before + 100 if level == "groups" else warm == before + 100
    assert after == before
    largest = max(float(item.abs().max()) for item in wanted)
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, atol=5e-6, rtol=0)
    for one, other in zip(got, wanted):
        assert float((one - other).abs().max()) <= 5e-6 * largest


def test_a_row_of_more_tokens_than_positions_is_refused(set_to):
    set_to(warm_up=513)
    with pytest.raises(ValueError, match="warm_up is 513, but GPT2Model has 512 positions"):
        states("auto", backbone_of("gpt2").train(), *padded_batch())


def test_nothing_of_a_backbone_is_changed_for_good():
    backbone = backbone_of("llama")
    before = [dict(vars(item)) for item in backbone.modules()]
    states("prefix", backbone, *padded_batch())
    assert [dict(vars(item)) for item in backbone.modules()] == before
    backbone.layers[0].mlp.forward = lambda *_: 1 / 0
    held = [dict(vars(item)) for item in backbone.modules()]
    with pytest.raises(ZeroDivisionError):
        states("prefix", backbone, *padded_batch())
    assert [dict(vars(item)) for item in backbone.modules()] == held


@pytest.mark.skipif(not attending._BY_NAME, reason="attention has names since transformers 4.48")
def test_a_model_of_eager_attention_is_packed_too():
    backbone = backbone_of("llama")
    backbone.config._attn_implementation = "eager"
    expected = alone(backbone)
    for one, other in zip(states("prefix", backbone, *padded_batch()), expected):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=0)
    assert backbone.config._attn_implementation == "eager"


def test_the_number_of_forwards_depends_on_the_number_of_rows_alone():
    """Under Gemini every forward gathers parameters, for which all ranks must meet."""
    backbone, calls = backbone_of("llama"), []
    backbone.register_forward_hook(lambda *_: calls.append(1))
    for level, forwards in (("groups", 4), ("packed", 1), ("prefix", 1)):
        for rows in (ROWS, [[1, 2]] * 6, [[1] * n for n in range(1, 7)]):
            calls.clear()
            states(level, backbone, *padded_batch(rows))
            assert len(calls) == forwards


def test_fewer_tokens_go_through_the_backbone():
    backbone, seen = backbone_of("llama"), []
    backbone.embed_tokens.register_forward_hook(lambda *call: seen.append(call[1][0].numel()))
    ids, mask = padded_batch()
    counts = {}
    for level in ("off", "groups", "packed", "prefix"):
        seen.clear()
        states(level, backbone, ids, mask)
        counts[level] = sum(seen)
    assert counts["off"] == ids.numel()
    assert counts["packed"] == int(mask.sum())
    assert counts["off"] > counts["groups"] > counts["packed"] > counts["prefix"]


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_twice_the_rows_take_twice_the_memory(family):
    """No mask of all packed tokens is made, which would take four times as much."""
    backbone = backbone_of(family)

    def peak(rows):
        batch = padded_batch([[1] * 30, *[[1] * 32] * rows])

        def step():
            with torch.no_grad():
                states("packed", backbone, *batch)

        variant = measure.Variant("packed", nullcontext, lambda: step)
        measure.once(variant, torch.device("cpu"))
        return measure.once(variant, torch.device("cpu")).peak

    assert peak(64) < 2.2 * peak(32)


def test_a_patch_that_is_off_leaves_the_padded_forward(upstream):
    for settings, level in (
        ({}, "auto"),
        ({"token_saving": {"enabled": False}}, "off"),
        ({"token_saving": {"level": "packed"}}, "packed"),
    ):
        assert make_plan(settings).choices["last_hidden_states"].name == level
