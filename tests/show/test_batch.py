"""Batches from texts, ids and captured experience."""

from __future__ import annotations

import json

import pytest
import torch

import coati_ext
from coati_ext.errors import InputError
from coati_ext.show.batch import PAIRS, ROLLOUT, Vocabulary, example, read
from coati_ext.testing import (
    cpu_only,
    experience_maker,
    make_experience,
    tiny_models,
    tiny_tokenizer,
)
from coati_ext.testing.padding import pad_rows

IDS = [{"prompt": [5, 6], "answer": [20, 2]}, {"prompt": [7], "answer": [21, 22]}]


def written(tmp_path, value, name="batch.json"):
    file = tmp_path / name
    if name.endswith(".pt"):
        torch.save(value, str(file))
    elif name.endswith("l"):
        file.write_text("".join(json.dumps(item) + "\n" for item in value))
    else:
        file.write_text(json.dumps(value))
    return file


@pytest.mark.parametrize("name", ["batch.json", "batch.jsonl", "batch.pt"])
def test_ids(tmp_path, name):
    batch = read(written(tmp_path, IDS, name), Vocabulary(), 4)
    assert (batch.kind, [row.ids for row in batch.rows]) == (
        ROLLOUT,
        [[5, 6, 20, 2], [7, 21, 22, 2]],
    )
    assert len(read(written(tmp_path, IDS, name), Vocabulary(), 1).rows) == 1


def test_texts_and_a_tokenizer(tmp_path):
    records = [{"prompt": "word1 Assistant:", "chosen": "good1 <eos>", "rejected": "bad1"}]
    file = written(tmp_path, records)
    words = Vocabulary.of(tiny_tokenizer(pad="eos"))
    batch = read(file, words, 4)
    assert (batch.kind, [row.name for row in batch.rows]) == (PAIRS, ["0 chosen", "0 rejected"])
    assert [words.text(token) for token in batch.rows[0].ids] == [
        *("word1", "Assistant:", "good1"),
        "<eos>",
    ]
    with pytest.raises(InputError, match="no tokenizer for the text 'good1 <eos>': pass --tok"):
        read(file, Vocabulary(), 4)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ([], "holds no records"),
        ([{"promt": [1], "answer": [2]}], "the first record has promt, answer.*prompt"),
        ([*IDS, {"prompt": [1]}], "a record is unlike the first: KeyError: 'answer'"),
        ("text", "holds no records"),
    ],
)
def test_a_file_of_another_form_is_named(tmp_path, value, told):
    with pytest.raises(InputError, match=told):
        read(written(tmp_path, value), Vocabulary(), 4)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    broken = tmp_path / "batch.pt"
    broken.write_text("no pickle")
    with pytest.raises(InputError, match=r"batch.pt cannot be read: "):
        read(broken, Vocabulary(), 4)
    with pytest.raises(InputError, match=r"ends in '.txt': expected .json, .jsonl, .pt"):
        read(tmp_path / "batch.txt", Vocabulary(), 4)


@pytest.mark.parametrize("pad", ["pad", "eos", "bos"])
def test_local_ids_are_alike_where_the_special_ones_are_and_nowhere_else(pad):
    batch = example(ROLLOUT, pad)
    tokenizer, rows = batch.local("left")
    special = {batch.words.pad: tokenizer.pad_token_id, batch.words.eos: tokenizer.eos_token_id}
    assert (batch.words.pad == batch.words.eos) == (pad == "eos")
    seen = []
    for row, real in zip(rows, batch.rows):
        for token, known in zip(row.ids, real.ids):
            assert special.get(known, token) == token
            seen += [] if known in special else [token]
    assert len({*seen}) == len(seen) > 10


@pytest.mark.enough("G1", "G4", why="a maker without a tokenizer, and one with")
def test_the_first_experience_of_a_job_is_captured(upstream, tmp_path):
    tokenizer = tiny_tokenizer(pad="eos", padding_side="left")
    prompts = [[9, 8], [14, 6, 33]]
    ids, mask = pad_rows(prompts, pad_token_id=2, side="left")
    given = {"gt_answer": [None] * 2} if upstream.generation == "G4" else {}
    file = tmp_path / "first.pt"
    settings = {"plugins": ["coati_ext.show.capture"], "capture": {"file": str(file)}}
    with coati_ext.applied(settings), cpu_only():
        maker = experience_maker(tiny_models("gpt2", pad_token_id=2), tokenizer=tokenizer)
        first, _ = (
            make_experience(maker, ids, mask, tokenizer=tokenizer, max_length=9, **given)
            for _ in range(2)
        )
    batch = read(file, Vocabulary(2, 2), 4)
    assert [row.prompt for row in batch.rows] == prompts
    for row, sequence, actions in zip(batch.rows, first.sequences, first.action_mask):
        assert row.answer == sequence[-len(actions) :][actions].tolist()
    if upstream.generation == "G4":
        assert batch.words.text(9) == tokenizer.convert_ids_to_tokens(9)
