"""The stamp by itself: how it is written, what it belongs to, and what differs from it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import json
import os
import re

import hypothesis
import numpy
import pytest
import torch
from hypothesis import strategies as st

from coati_ext.checkpoints import atomic, seal, stamp
from coati_ext.checkpoints.stamp import Stamp
from coati_ext.errors import StampError
from coati_ext.rollout import ranks
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
    old = dataclasses.replace(SOME, version="0.3.0")
    content = {**old.as_dict(), "weights": seals}
    (tmp_path / stamp.FILE).write_text(json.dumps(content))
    found, told = stamp.read(tmp_path)
    assert found == old
    assert "hashed samples of the weights" in told
    with (tmp_path / "c.safetensors").open("r+b") as stream:
        stream.write(b"1")
    assert "of other weights" in stamp.read(tmp_path)[1]


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


def test_a_seal_is_the_hash_of_the_hashes_of_blocks(tmp_path):
    """So that anyone can check it."""
    content = numpy.arange(5 << 20, dtype=">u4").tobytes()  # 20 MiB
    (tmp_path / "rm.safetensors").write_bytes(content)
    blocks = [content[start : start + (1 << 23)] for start in range(0, len(content), 1 << 23)]
    assert len(blocks) == 3
    whole = b"".join(hashlib.sha256(block).digest() for block in blocks)
    expected = f"{20 << 20}-sha256:{hashlib.sha256(whole).hexdigest()}"
    assert seal.seals_of(seal.weights_of(tmp_path)) == {"rm.safetensors": expected}


def test_what_takes_a_while_shows_how_far_it_is_on_one_rank(tmp_path, monkeypatch, capfd):
    (tmp_path / "rm.bin").write_bytes(b"weights")
    stamp.write(tmp_path, SOME)
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(seal, "_SLOW", 0)
    stamp.read(tmp_path)
    assert "checking the weights" in capfd.readouterr().err
    monkeypatch.setattr(ranks, "is_first", lambda: False)
    stamp.read(tmp_path)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("ranks_here", "cores", "threads"), [("1", 64, 8), ("8", 32, 4), ("8", 4, 1), ("0", 2, 2)]
)
def test_each_rank_reads_with_its_share_of_the_cores(monkeypatch, ranks_here, cores, threads):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks_here)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert seal._threads() == threads


@pytest.mark.parametrize("kind", ["a folder", "a FIFO", "a dangling link"])
def test_what_is_no_file_in_the_place_of_a_stamp_is_told(tmp_path, kind):
    (tmp_path / "rm.bin").write_bytes(b"weights")
    place = tmp_path / stamp.FILE
    make = {
        "a folder": place.mkdir,
        "a FIFO": lambda: os.mkfifo(place),
        "a dangling link": lambda: place.symlink_to("nowhere"),
    }
    make[kind]()
    with pytest.raises(StampError, match=re.escape(f"is corrupt in {place}: it is a")):
        stamp.read(tmp_path)


def test_a_stamp_file_without_seals_says_what_was_expected(tmp_path):
    (tmp_path / "rm.bin").write_bytes(b"weights")
    stamp.write(tmp_path, SOME)
    content = json.loads((tmp_path / stamp.FILE).read_text())
    rest = {**SOME.as_dict(), "weights": {"rm.bin": "none"}}
    assert content.keys() == stamp._signed(rest).keys()
    (tmp_path / stamp.FILE).write_text(json.dumps(stamp._signed(rest)))
    told = "expected the seal of each file of weights, found {'rm.bin': 'none'}"
    with pytest.raises(StampError, match=re.escape(told)):
        stamp.read(tmp_path)


def test_a_stamp_inside_that_is_not_the_one_beside_is_of_weights_saved_later(tmp_path):
    """By ``torch.save``, which knows nothing of the file beside; the same one is of neither."""
    file = tmp_path / "rm.bin"

    def save(inside, bias):
        weights = torch.nn.Linear(2, 2).state_dict()
        weights["bias"].fill_(bias)
        stamp.put(weights, inside)
        torch.save(weights, str(file))

    save(SOME, 1.0)
    stamp.write(file, SOME)
    later = dataclasses.replace(SOME, digest="another plan")
    save(later, 2.0)
    assert stamp.read(file) == (later, "")
    save(SOME, 3.0)
    found, told = stamp.read(file)
    assert found is None
    assert "of other weights" in told


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    file = tmp_path / "old"
    file.write_text("old")

    def fail(new):
        new.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic.put(file, fail)
    assert [item.name for item in tmp_path.iterdir()] == ["old"]
    assert file.read_text() == "old"
    atomic.put(file, lambda new: new.write_text("new"))
    assert file.read_text() == "new"
