"""The stamp by itself: how it is written, what it belongs to, and what differs from it."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json

import hypothesis
import numpy
import pytest
import torch
from hypothesis import strategies as st

from coati_ext.checkpoints import stamp
from coati_ext.checkpoints.stamp import Stamp
from coati_ext.testing import tiny_tokenizer
from helpers.stamps import SOME, TOKENIZER

TEXT = st.text(max_size=8)


@hypothesis.given(st.builds(Stamp, TEXT, TEXT, TEXT, TEXT, st.none() | st.integers(0), *[TEXT] * 4))
def test_a_stamp_survives_json_and_differs_from_itself_in_nothing(item):
    again = Stamp.from_dict(json.loads(json.dumps(item.as_dict())), "here")
    assert again == item
    assert item.differences(again) == []


@hypothesis.given(st.data())
def test_differences_are_mutual(data):
    forms = st.builds(
        Stamp,
        st.sampled_from(["reward model", "critic"]),
        *[st.sampled_from(["", "a", "b"])] * 3,
        st.sampled_from([None, 1, 2]),
        *[st.sampled_from(["", "a", "b"])] * 4,
    )
    one, other = data.draw(forms), data.draw(forms)
    assert one.differences(other) == other.differences(one)


@hypothesis.given(size=st.integers(1, 300_000), place=st.floats(0, 0.999), big=st.booleans())
def test_a_stamp_is_of_its_weights_alone(tmp_path_factory, size, place, big):
    """Any byte of a file that is read whole, and the size of any file."""
    file = tmp_path_factory.mktemp("seal") / "rm.bin"
    content = bytearray(size)
    file.write_bytes(content)
    stamp.write(file, SOME)
    assert stamp.read(file) == (SOME, "")
    if big:
        content += b"0"
    else:
        content[int(place * size)] ^= 1
    file.write_bytes(content)
    assert stamp.read(file)[0] is None
    assert "of other weights" in stamp.read(file)[1]


def test_a_stamp_does_not_care_where_its_weights_lie(tmp_path):
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / "pytorch_model.bin").write_bytes(b"weights")
    (folder / "pytorch_model.bin.index.json").write_text("{}")
    stamp.write(folder, SOME)
    (folder / "tokenizer.json").write_text("{}")  # no weights
    folder.rename(tmp_path / "two")
    assert stamp.read(tmp_path / "two")[0] == SOME
    assert stamp.read(tmp_path / "two" / "pytorch_model.bin.index.json")[0] == SOME
    stamp.remove(tmp_path / "two")
    assert stamp.read(tmp_path / "two") == (None, "it carries no stamp")


def test_a_tokenizer_is_told_by_what_it_makes_of_a_text():
    mine = stamp.tokenizer_fingerprint(TOKENIZER)
    for same in (tiny_tokenizer(), tiny_tokenizer(pad="eos")):
        assert stamp.tokenizer_fingerprint(same) == mine
    more = tiny_tokenizer()
    more.add_tokens(["another"])
    ended = tiny_tokenizer()
    ended.eos_token = ended.convert_ids_to_tokens(9)
    padded = tiny_tokenizer()
    padded.add_special_tokens({"pad_token": "[PAD]"})
    assert stamp.tokenizer_fingerprint(more) != mine
    assert stamp.tokenizer_fingerprint(ended) != mine
    assert stamp.tokenizer_fingerprint(object()) == ""


def test_reading_a_stamp_does_not_read_the_weights(tmp_path, monkeypatch):
    """A file of weights is looked at only where no stamp lies beside it."""
    file = tmp_path / "rm.pt"
    model = torch.nn.Linear(2, 2)
    weights = model.state_dict()
    stamp.put(weights, SOME)
    torch.save(weights, str(file))
    assert stamp.read(file)[0] == SOME
    stamp.write(file, dataclasses.replace(SOME, pooling="beside"))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("read the weights"))
    assert stamp.read(file)[0].pooling == "beside"


def test_a_pad_token_added_behind_the_vocabulary_does_not_change_a_tokenizer():
    padded = tiny_tokenizer()
    padded.add_special_tokens({"pad_token": "[PAD]"})
    assert padded.pad_token_id == padded.vocab_size
    assert stamp.tokenizer_fingerprint(padded) == stamp.tokenizer_fingerprint(TOKENIZER)
    padded.add_tokens(["another"])
    assert stamp.tokenizer_fingerprint(padded) != stamp.tokenizer_fingerprint(TOKENIZER)


def test_a_stamp_file_of_an_earlier_release_is_still_of_its_weights(tmp_path):
    """The seals that it holds are of files that are read whole, and of one in samples."""
    for name, size in (("a.bin", 300), ("b.bin", 3 << 20), ("c.safetensors", 5 << 20)):
        (tmp_path / name).write_bytes(numpy.arange(size // 4, dtype=">u4").tobytes())
    seals = {
        "a.bin": "300-572716ec94c826dc",
        "b.bin": "3145728-6f70fd3745ff7c04",
        "c.safetensors": "5242880-7c2c246ec8884475",
    }
    content = {**SOME.as_dict(), "weights": seals}
    (tmp_path / stamp.FILE).write_text(json.dumps(content))
    assert stamp.read(tmp_path) == (SOME, "")


def test_weights_are_mapped_rather_than_read_where_torch_can(tmp_path, monkeypatch):
    weights = torch.nn.Linear(2, 2).state_dict()
    stamp.put(weights, SOME)
    torch.save(weights, str(tmp_path / "rm.pt"))
    load, seen = torch.load, []

    @functools.wraps(load)
    def watched(*args, **kwargs):
        seen.append(kwargs)
        return load(*args, **kwargs)

    monkeypatch.setattr(torch, "load", watched)
    assert stamp.read(tmp_path / "rm.pt")[0] == SOME
    (given,) = seen
    assert given.get("mmap", False) == ("mmap" in inspect.signature(load).parameters)
    assert given["weights_only"] is True


@pytest.mark.parametrize("place", [0, -1])
def test_both_ends_of_a_big_file_count(tmp_path, place):
    file = tmp_path / "rm.bin"
    content = bytearray((5 << 20) + (1 << 16))
    file.write_bytes(content)
    stamp.write(file, SOME)
    content[place] = 1
    file.write_bytes(content)
    assert "of other weights" in stamp.read(file)[1]
