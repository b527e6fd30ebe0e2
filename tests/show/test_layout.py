"""What ``show`` says of a batch is what the functions of the coati under test compute."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch

import coati_ext
from coati_ext.show.batch import PAIRS, ROLLOUT, example
from coati_ext.show.columns import shown
from coati_ext.show.layout import _places as places_of
from coati_ext.show.layout import layout
from coati_ext.show.probe import traced
from coati_ext.show.text import LETTERS
from coati_ext.testing import layouts, random_rows, tiny_reward_model, tiny_tokenizer
from coati_ext.testing.dictation import dictating_actor
from helpers.upstreams import Upstream

PATCHES = {"token_saving": {"enabled": False}}
ROWS = random_rows((3, 5, 9))
MEAN = "as a mean over several columns, pads among them"
# Where upstream reads a reward in a rollout, measured without this module: docs/defects.md.
POOLED = {
    ("G1", "pad"): MEAN,
    ("G1", "eos"): MEAN,
    ("G2", "pad"): "at the EOS",
    ("G2", "eos"): "at an answer token",
    ("G3", "pad"): "at a pad",
    ("G3", "eos"): "at the EOS",
    ("G4", "pad"): "at a pad",
    ("G4", "eos"): "at a pad",
}


def rewards_by_weights(call, positions):
    """The reward as the sum of what the value head gives at the marked cells."""
    model = tiny_reward_model("gpt2")
    given = {"position_ids": call.attention_mask.long().cumsum(1).sub(1).clamp(min=0)}
    with torch.no_grad():
        hidden = model.model(
            call.input_ids,
            attention_mask=call.attention_mask.long(),
            **(given if positions else {}),
        )["last_hidden_state"]
        return (model.value_head(hidden).squeeze(-1) * call.weights).sum(dim=1)


@pytest.mark.parametrize("state", ["off", "on"])
def test_the_marked_cells_give_the_reward_of_a_real_model(upstream: Upstream, state):
    """With random weights no other cell would: a model of GPT-2, every layout of the same rows."""
    if state == "on":
        coati_ext.enable(PATCHES)
    for _, ids, mask in layouts(ROWS, pad_token_id=0):
        probe = tiny_reward_model("gpt2")
        with traced(probe) as calls:
            probe(ids, attention_mask=mask)
        with torch.no_grad():
            reward = tiny_reward_model("gpt2")(ids, attention_mask=mask)
        expected = rewards_by_weights(calls[0], positions=state == "on")
        torch.testing.assert_close(reward, expected, atol=1e-5, rtol=0)
        moved = calls[0].weights.roll(1, dims=1)
        assert not torch.equal(moved, calls[0].weights)


@pytest.mark.parametrize("pad", ["pad", "eos"])
def test_where_a_reward_is_read_in_a_rollout(upstream, pad):
    batch = example(ROLLOUT, pad)
    off = layout(batch, None)
    assert off["findings"][0] == f"reward read {POOLED[upstream.generation, pad]} (3 of 3 rows)"
    with coati_ext.applied(PATCHES):
        on = layout(batch, None)
    tokens = upstream.generation in ("G3", "G4")
    of = "12 of 12" if tokens else "3 of 3"
    assert on["findings"] == [
        "reward read at the EOS (3 of 3 rows)",
        f"values: {of} old and {of} new ones are of the state before the action; {of} old and new "
        "ones are of the same token",
        "actions trained: 12",
    ]
    assert off["findings"][1].startswith(f"values: 0 of {of.split()[-1]} old and 0 of ")


@pytest.mark.generations("G3", "G4")
def test_the_values_of_a_left_padded_row_are_shifted_by_its_pads(upstream):
    """As traced by hand (D10): the old value of action 0 of row 1, three pads, is of action 3."""
    off = layout(example(ROLLOUT, "pad"), None)
    lanes = {lane: grid["rows"][1] for grid in off["grids"] for lane in grid["rows"][1]["marks"]}
    read = {}
    for lane in ("old value", "new value", "action"):
        row = lanes[lane]
        places = {mark: place for place, mark in zip(row["places"], row["marks"][lane]) if mark}
        read[lane] = [places[str(number)] for number in range(6)]
    assert read["action"] == read["new value"] == [3, 4, 5, 6, 7, 8]
    end = 8 if upstream.generation == "G4" else -1  # G3 has a pad in the place of EOS
    assert read["old value"] == [6, 7, end, -1, -1, -1]


@pytest.mark.generations("G1")
def test_prompts_of_g1_are_padded_as_the_tokenizer_does(upstream):
    """GPT-2's pads on the right (D6); with the patches on, no pad is inside a row."""
    batch = example(ROLLOUT, "eos")
    assert layout(batch, None)["findings"][-1].endswith("pads between real tokens: 5")
    with coati_ext.applied(PATCHES):
        assert "between" not in " ".join(layout(batch, None)["findings"])


@pytest.mark.once(why="no coati takes part")
@pytest.mark.parametrize(
    ("ids", "row", "places"),
    [
        ([2, 2, 9, 8, 7, 2, 2], [9, 8, 7, 2], [-1, -1, 0, 1, 2, 3, -1]),
        ([1, 1, 9, 8], [1, 9, 8], [-1, 0, 1, 2]),  # bos pads
        ([9, 0, 0, 8, 0, 2], [9, 8, 0, 2], [0, -1, -1, 1, 2, 3]),  # torn; a sampled pad
        ([0, 0], [9, 2], [-1, -1]),  # nothing of the row is left
    ],
)
def test_the_place_of_each_cell(ids, row, places):
    assert places_of(ids, row) == places


def test_actions_stand_where_upstream_takes_their_log_probs(upstream):
    made = layout(example(ROLLOUT, "pad"), None)
    rows = next(grid["rows"] for grid in made["grids"] if "action" in grid["rows"][0]["marks"])
    width = len(rows[0]["kinds"])
    first = min(column for row in rows for column in columns_of(row, "action"))
    sequences = torch.arange(3 * width).view(3, width) % 50
    logits = torch.randn(3, width, 50, generator=torch.Generator().manual_seed(0))
    given = {"logits": logits} if upstream.generation == "G1" else logits
    utils = import_module("coati.models.utils")
    found = utils.calc_action_log_probs(given, sequences, width - first)
    expected = logits.log_softmax(-1)
    for number, row in enumerate(rows):
        for column in columns_of(row, "action"):
            action = int(row["marks"]["action"][column])
            token = sequences[number, column]
            torch.testing.assert_close(
                found[number, action], expected[number, column - 1, token], atol=1e-5, rtol=0
            )


def columns_of(row, lane):
    return [column for column, mark in enumerate(row["marks"][lane]) if mark]


@pytest.mark.parametrize("pad", ["pad", "eos"])
def test_a_batch_of_reward_model_training(upstream, pad):
    batch = example(PAIRS, pad)
    (off,) = layout(batch, None)["grids"]
    with coati_ext.applied(PATCHES):
        made = layout(batch, None)
    assert made["findings"] == ["reward read at the EOS (4 of 4 rows)"]
    (on,) = made["grids"]
    names = ["0 chosen", "1 chosen", "0 rejected", "1 rejected"]
    for row in [*off["rows"], *on["rows"]]:
        real = [kind != "pad" for kind in row["kinds"]]
        assert [bool(it) for it in row["mask"]] == real
        assert sum(real) == row["tokens"]
    for name, before, after in zip(names, off["rows"], on["rows"]):
        assert before["name"] == after["name"] == name
        assert before["kinds"][0] == "prompt"  # right-padded
        assert after["kinds"][-1] == "EOS"  # left-padded


def test_a_row_that_upstream_cuts_loses_its_end_token(upstream):
    batch = example(PAIRS, "pad")
    with coati_ext.applied(PATCHES):
        on = layout(batch, 8)["grids"][0]["rows"]
    assert [row["kinds"][-1] for row in on] == ["EOS"] * 4
    off = layout(batch, 8)
    assert "EOS" not in off["grids"][0]["rows"][0]["kinds"]
    assert off["findings"][-1].startswith("reward model: tokens of the rows missing: ")


@pytest.mark.enough("G2", "G4", why="two samplers: whole answers, and with stop sequences")
def test_an_actor_says_what_it_is_told(upstream):
    from coati_ext.testing import cpu_only, experience_maker, make_experience, tiny_models
    from coati_ext.testing.padding import pad_rows

    tokenizer = tiny_tokenizer(pad="eos", padding_side="left")
    prompts, answers = [[9, 8], [14, 6, 33]], [[20, 21, 22, 2], [29, 2]]
    whole = [prompt + answer for prompt, answer in zip(prompts, answers)]
    actor = dictating_actor(whole, eos_token_id=2, vocab_size=len(tokenizer))
    models = tiny_models("gpt2")._replace(actor=actor)
    ids, mask = pad_rows(prompts, pad_token_id=2, side="left")
    given = {"gt_answer": [None] * 2} if upstream.generation == "G4" else {}
    for state in ("off", "on"):
        if state == "on":
            coati_ext.enable()
        with cpu_only():
            maker = experience_maker(models, tokenizer=tokenizer)
            made = make_experience(maker, ids, mask, tokenizer=tokenizer, max_length=8, **given)
        said = made.sequences[:, -made.action_mask.size(1) :][:, :4]
        assert said.tolist() == [[20, 21, 22, 2], [29, 2, 2, 2]]


def test_long_runs_are_left_out_but_not_their_ends():
    def row(kinds, marks):
        return {"kinds": kinds, "mask": [1] * len(kinds), "marks": {"action": marks}}

    kinds = ["pad"] * 3 + ["prompt"] * 20 + ["answer"] * 11 + ["EOS"]
    numbers = [""] * 23 + [str(number) for number in range(12)]
    columns = shown({"rows": [row(kinds, numbers)]})
    assert columns == [0, 1, 2, 3, 4, None, 21, 22, 23, 24, None, 32, 33, 34]
    numbers[28] = ""  # an action is missing: that is no run
    columns = shown({"rows": [row(kinds, numbers)]})
    assert {27, 28, 29} <= {*columns}


def test_every_kind_has_a_letter_of_its_own():
    assert len({*LETTERS.values()}) == len(LETTERS) == 4
