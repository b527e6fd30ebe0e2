"""Stamps and weights that were altered or half written: none is taken for what it was."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import random
import signal
import time

import pytest
import torch

from coati_ext.checkpoints import stamp
from coati_ext.errors import StampError
from helpers import processes
from helpers.stamps import SOME

pytestmark = [pytest.mark.attack, pytest.mark.once("bytes and files, as on every stack")]
ODD = [None, True, 0, -1, 2.0, 10**400, "", "eos", "critic", "0.3.0", [], {}, float("nan")]


# --- stamps ------------------------------------------------------------------------------------


def other_bytes(draw, content):
    """The content with some bytes changed, cut, doubled or put in."""
    changed = bytearray(content)
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        start = draw.randrange(len(changed) + 1)
        end = min(len(changed), start + draw.choice([1, 1, 2, 8, 64]))
        drawn = draw.choice(
            [
                bytes(draw.randrange(256) for _ in range(end - start)),
                bytes(draw.choice(b'0123456789abcdef"{}[],: ') for _ in range(end - start)),
                b"",
                bytes(changed[start:end]) * 2,
                b"[" * 20_000,
                b"9" * 5000,
            ]
        )
        changed[start:end] = drawn
    return bytes(changed)


def other_fields(draw, content):
    """The content with some fields of another value, without it, or with another name."""
    changed = copy.deepcopy(content)
    for _ in range(draw.choice([1, 1, 1, 2])):
        place = changed
        if "weights" in changed and isinstance(changed["weights"], dict) and draw.random() < 0.2:
            place = changed["weights"]
        if not place:
            continue
        key = draw.choice(sorted(place))
        value = draw.choice([*ODD, draw.choice([*place.values()])])
        if isinstance(place[key], str) and draw.random() < 0.5:
            value = place[key][:-1] + draw.choice("0123456789abcdef")
        what = draw.choice(["set", "set", "delete", "rename", "add"])
        if what in ("delete", "rename"):
            value = place.pop(key)
        if what != "delete":
            place[key if what == "set" else f"{key}x"] = value
    return changed


def nested(depth):
    content = {}
    for _ in range(depth):
        content = {"kind": content}
    return content


def believed(attempt):
    """Whether a stamp is read that nobody wrote."""
    try:
        found = attempt()
    except StampError:
        return False
    return found is not None and found != SOME


def test_an_altered_stamp_file_is_not_believed(tmp_path, full, tally):
    (tmp_path / "rm.bin").write_bytes(b"weights")
    (tmp_path / "rm.safetensors").write_bytes(b"more weights")
    stamp.write(tmp_path, SOME)
    file = tmp_path / stamp.FILE
    content = file.read_bytes()
    assert stamp.read(tmp_path) == (SOME, "")
    draw = random.Random(0)
    count = 6000 if full else 200
    texts = [other_bytes(draw, content) for _ in range(count)]
    fields = [other_fields(draw, json.loads(content)) for _ in range(count)]
    texts += [json.dumps(item).encode() for item in fields if 10**400 not in item.values()]
    texts += [
        b"[" * 10**6,
        json.dumps(nested(300)).encode(),
        b"{" + content[1:-2] + b',"kind":"x"}',
    ]
    through = []
    for text in texts:
        file.write_bytes(text)
        if believed(lambda: stamp.read(tmp_path)[0]):
            through.append(text)
    tally("altered stamps", len(texts), len(through))
    assert through == []


def test_an_altered_stamp_in_a_state_dict_is_not_believed(full, tally):
    weights = torch.nn.Linear(2, 2).state_dict()
    stamp.put(weights, SOME)
    content = weights._metadata[""]["coati_ext"]
    assert stamp.of_metadata(weights._metadata[""], "here") == SOME
    draw = random.Random(0)
    altered = [other_fields(draw, content) for _ in range(6000 if full else 200)]
    altered += [nested(10**5), [], {**content, "more": nested(10**5)}]
    through = [
        item
        for item in altered
        if believed(lambda item=item: stamp.of_metadata({"coati_ext": item}, "here"))
    ]
    tally("altered stamps", len(altered), len(through))
    assert through == []


# --- weights -----------------------------------------------------------------------------------

TENSORS = 24
FORMS = ["file.safetensors", "file.bin", "folder of .safetensors", "folder of .bin"]


def write_weights(path, weights):
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(weights, str(path))
    else:
        state = torch.nn.Linear(1, 1).state_dict()
        state.clear()
        state.update(weights)
        stamp.put(state, SOME)  # as a reward model is saved with the flag on
        torch.save(state, str(path))


@pytest.mark.parametrize("form", FORMS)
def test_an_altered_tensor_is_not_believed(form, tmp_path, full, tally):
    """Any single one, by a single bit, in files of which a sample would not see most tensors."""
    draw = torch.Generator().manual_seed(0)
    weights = {f"layer{n}": torch.randn(1 << 16, generator=draw) for n in range(TENSORS)}
    parts = [weights]
    checkpoint = tmp_path / form
    names = [checkpoint]
    if form.startswith("folder"):
        checkpoint.mkdir()
        keys = sorted(weights)
        parts = [{key: weights[key] for key in keys[start::3]} for start in range(3)]
        names = [checkpoint / f"part{number}{form[len('folder of ') :]}" for number in range(3)]
        places = {key: name.name for part, name in zip(parts, names) for key in part}
        index = checkpoint / "model.index.json"
        index.write_text(json.dumps({"weight_map": places}))
    for part, name in zip(parts, names):
        write_weights(name, part)
    stamp.write(checkpoint, SOME)
    assert stamp.read(checkpoint) == (SOME, "")

    through, tried = [], 0
    for part, name in zip(parts, names):
        content = name.read_bytes()
        for key in sorted(part)[:: 1 if full else 8]:
            place = content.index(part[key].numpy().tobytes()[:256]) + 4 * (1 << 15)
            with name.open("r+b") as stream:
                stream.seek(place)
                stream.write(bytes([content[place] ^ 1]))
                stream.flush()
                through += [key] * (stamp.read(checkpoint)[0] is not None)
                stream.seek(place)
                stream.write(content[place : place + 1])
            tried += 1
    assert stamp.read(checkpoint) == (SOME, "")
    if form.startswith("folder"):
        index.write_text(json.dumps({"weight_map": {**places, "layer0": names[-1].name}}))
        through += ["index"] * (stamp.read(checkpoint)[0] is not None)
        tried += 1
    tally("altered weights", tried, len(through))
    assert through == []


# --- kills -------------------------------------------------------------------------------------


def save_again_and_again(checkpoint):
    """Weights and their stamp, which both say the same number."""
    for number in range(10**6):
        stamp.remove(checkpoint)
        for name in ("one.bin", "two.safetensors"):
            (checkpoint / name).write_bytes(f"{number} ".encode() * 500)
        stamp.write(checkpoint, dataclasses.replace(SOME, digest=str(number)))
        time.sleep(0.003)


def killed_savers(checkpoint, kills):
    """Processes that save there, each killed at some moment: what the stamp says, and the weights.

    They are forked from this one, which has imported all that they need.
    """
    draw = random.Random(0)
    results = []
    for _ in range(kills):
        saver = os.fork()
        if saver == 0:
            save_again_and_again(checkpoint)
        time.sleep(0.001 + draw.random() * 0.03)
        os.kill(saver, signal.SIGKILL)
        os.waitpid(saver, 0)
        found, _ = stamp.read(checkpoint)  # and no error
        files = [*checkpoint.glob("*.bin"), *checkpoint.glob("*.safetensors")]
        written = {number for file in files for number in file.read_text().split()}
        results.append([found and found.digest, sorted(written)])
    (checkpoint / "results").write_text(json.dumps(results))


def test_a_save_killed_at_any_moment_leaves_no_stamp_of_other_weights(tmp_path, full, tally):
    kills = 500 if full else 40
    process = processes.server().Process(target=killed_savers, args=(tmp_path, kills))
    process.start()
    process.join(processes.LIMIT)
    assert process.exitcode == 0
    results = json.loads((tmp_path / "results").read_text())
    through = [result for result in results if result[0] is not None and result[1] != [result[0]]]
    tally("kills while a checkpoint is saved", len(results), len(through))
    assert through == []
    assert any(digest for digest, _ in results)
    assert any(digest is None for digest, _ in results)
