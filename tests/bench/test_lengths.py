"""The rows that are measured, and how many of their tokens have to be computed."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from coati_ext.bench.lengths import Pair, Vocabulary, counts, drawn, made, padded, read
from coati_ext.errors import InputError

pytestmark = pytest.mark.once("plain Python and NumPy")
WORDS = Vocabulary(size=100, pad=0, eos=2)
PROMPT = list(range(10, 40))


def test_tokens_are_counted_as_they_are_computed():
    rows = [[*PROMPT, 50, 2], [*PROMPT, 60, 61, 2], [3, 2]]
    assert counts(rows, 40) == {"padded": 120, "groups": 67, "real": 67, "unique": 37}
    many = counts([[3] * size for size in (1, 1, 8, 8, 9, 20)], 20)
    assert many["groups"] == 2 * 1 + 2 * 8 + 9 + 20
    assert many["padded"] == 120


def test_drawn_rows_have_the_lengths_of_conversations():
    pairs = drawn(4000, 4096, WORDS)
    for sizes, mean in (
        ([len(pair.prompt) for pair in pairs], 108),
        ([len(pair.chosen) for pair in pairs], 72),
    ):
        assert abs(sum(sizes) / len(sizes) - mean) < 0.05 * mean
    assert drawn(4, 512, WORDS) == drawn(4, 512, WORDS)
    for pair in drawn(100, 64, WORDS, scale=3):
        for row in pair.rows:
            assert len(row) <= 64
            assert row[-1] == WORDS.eos
            assert not {WORDS.pad, WORDS.eos} & {*row[:-1]}


def test_what_is_cut_keeps_the_answer_and_its_end():
    pair = Pair([*range(10, 20)], [31, 32, 33, 2], [41, 2])
    assert pair.cut(9, 3) == Pair([*range(14, 20)][:6], [31, 32, 2], [41, 2])
    assert pair.cut(100, 100) == pair
    assert pair.cut(4, 4).prompt == []


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "abc", "chosen": "de", "rejected": "f"},
        {
            "context": [{"from": "human", "content": "abc"}],
            "chosen": [{"from": "assistant", "content": "de"}],
            "rejected": {"from": "assistant", "content": "f"},
        },
        {
            "chosen_input_ids": [97, 98, 99, 100, 101, 2],
            "chosen_loss_mask": [0, 0, 0, 1, 1, 1],
            "rejected_input_ids": [97, 98, 99, 102, 2],
            "rejected_loss_mask": [0, 0, 0, 1, 1],
        },
    ],
    ids=["texts", "messages", "prepared"],
)
def test_every_form_of_a_preference_pair_is_read(tmp_path, record):
    class Letters(SimpleNamespace):
        def __call__(self, text):
            return {"input_ids": [ord(letter) for letter in text]}

    file = tmp_path / "pairs.jsonl"
    file.write_text("\n" + json.dumps(record) + "\n")
    assert read(file, Letters(eos_token_id=2), WORDS) == [
        Pair([97, 98, 99], [100, 101, 2], [102, 2])
    ]


def test_lengths_are_enough(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"prompt": 7, "chosen": 3, "rejected": 5}\n')
    assert read(file, None, WORDS) == made([(7, 3, 5)], WORDS)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"prompt": 1, "chosen": 2, "rejected": 3}\n{"prompt": 1}\n', "line 2.*chosen"),
        ("{\n", "line 1"),
        ('{"prompt": "a", "chosen": "b", "rejected": "c"}', "tokenizer"),
        ("\n", "no lines"),
    ],
)
def test_what_is_no_pair_is_told(tmp_path, text, told):
    file = tmp_path / "pairs.jsonl"
    file.write_text(text)
    with pytest.raises(InputError, match=told):
        read(file, None, WORDS)
    with pytest.raises(InputError, match="cannot read"):
        read(tmp_path / "none.jsonl", None, WORDS)


def test_pads_stand_on_their_side():
    ids, mask = padded([[5, 6], [7]], 3, 9, "left")
    assert ids.tolist() == [[9, 5, 6], [9, 9, 7]]
    assert mask.tolist() == [[0, 1, 1], [0, 0, 1]]
    assert padded([[5, 6]], 3, 9, "right")[0].tolist() == [[5, 6, 9]]
