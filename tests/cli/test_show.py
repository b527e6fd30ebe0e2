"""``coati-ext show``: what it prints, writes and refuses."""

from __future__ import annotations

import json

import pytest

from coati_ext.testing import tiny_tokenizer


@pytest.fixture
def show(upstream, capsys):
    """Run the command in this process: its status and what it prints."""
    from coati_ext.cli import main

    def run(*arguments):
        status = main(["show", *arguments])
        return status, capsys.readouterr()

    return run


def test_an_example_of_each_kind(show, upstream):
    status, printed = show()
    assert status == 0
    assert "\x1b" not in printed.out  # not a terminal
    for state in ("upstream (patches off)", "patches on"):
        assert f"a rollout, {state}" in printed.out
        assert f"a batch of reward-model training, {state}" in printed.out
    assert "upstream fails" not in printed.out
    _, printed = show("--json")
    facts = json.loads(printed.out)
    assert facts["generation"] == upstream.generation
    assert [batch["kind"] for batch in facts["batches"]] == ["rollout", "pairs"]


@pytest.mark.enough("G1", "G4", why="the two shapes of a layout: of answers, and of tokens")
@pytest.mark.parametrize(("name", "begins"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml")])
def test_a_picture(show, tmp_path, name, begins):
    pytest.importorskip("matplotlib")
    status, printed = show("--out", str(tmp_path / name))
    assert (status, printed.out.splitlines()[-1]) == (0, f"picture: {tmp_path / name}")
    assert (tmp_path / name).read_bytes().startswith(begins)


@pytest.mark.enough("G4", why="the same lines on every coati")
def test_texts_of_ones_own(show, tmp_path):
    tiny_tokenizer(pad="eos").save_pretrained(str(tmp_path / "words"))
    record = {"prompt": "word1 word2 Assistant:", "answer": "good1 bad2"}
    (tmp_path / "mine.jsonl").write_text(json.dumps(record))
    names = [str(tmp_path / "mine.jsonl"), "--tokenizer", str(tmp_path / "words")]
    _, printed = show(*names, "--json")
    (batch,) = json.loads(printed.out)["batches"]
    (row,) = batch["states"][1]["grids"][0]["rows"]
    assert row["texts"] == ["word1", "word2", "Assistant:", "good1", "bad2", "<eos>"]


@pytest.mark.enough("G4", why="the same lines on every coati")
def test_an_error_of_upstream_is_shown(show, tmp_path):
    """A prompt as wide as the room: upstream fails, and we sample nothing."""
    (tmp_path / "ids.json").write_text(json.dumps([{"prompt": [5, 6, 7], "answer": [8]}]))
    with pytest.warns(UserWarning, match="no answers are sampled"):
        status, printed = show(str(tmp_path / "ids.json"), "--max-length", "3")
    assert status == 0
    assert "- upstream fails: " in printed.out


@pytest.mark.enough("G4", why="the same lines on every coati")
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--out", "a.gif"], "expected a name in .png or .svg"),
        (["none.json"], "none.json cannot be read: FileNotFoundError"),
        (["none.json", "--tokenizer", "gpt2"], "no tokenizer at gpt2: there is no such folder"),
    ],
)
def test_what_is_refused(show, arguments, told):
    status, printed = show(*arguments)
    assert status != 0
    assert told in printed.err


@pytest.mark.enough("G4", why="the same lines on every coati")
def test_the_flag_is_refused(show, monkeypatch):
    monkeypatch.setenv("COATI_EXT", "1")
    status, printed = show()
    assert status == 2
    assert "show switches the patches itself: unset COATI_EXT" in printed.err
