"""``coati-ext calibrate``: what it measures, where it writes it, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path

import numpy
import pytest
import torch

import coati_ext
from coati_ext.checkpoints import calibrate as calibrating
from coati_ext.checkpoints import seal, stamp
from coati_ext.checkpoints.migrate.data import split
from coati_ext.cli import main
from coati_ext.launch.installation import version_of
from coati_ext.patches.provenance import this_run
from coati_ext.testing import (
    preference_pairs,
    tiny_reward_model,
    tiny_tokenizer,
)
from coati_ext.testing.padding import pad_rows

LENGTH = 96  # shorter than some rows, which are cut
SCALED = {"reward_scaling": {"enabled": True, "mode": "reference"}}
TOKENIZER = tiny_tokenizer(padding_side="left")
SIZES = {"hidden_size": 16, "layers": 1, "max_positions": 128, "vocab_size": len(TOKENIZER)}
with_colossalai = pytest.mark.skipif(
    version_of("colossalai") is None, reason="colossalai is not installed"
)


@pytest.fixture(params=["gpt2", "llama"])
def family(request):
    """One with learned positions and one with rotary ones."""
    return request.param


def reward_model(family="gpt2", seed=0):
    """A reward model of this run, and what the command needs to know of it."""
    this_run.see(TOKENIZER)
    model = tiny_reward_model(family, seed=seed, **SIZES)
    model.model.config.save_pretrained("pretrained")
    TOKENIZER.save_pretrained("pretrained")
    return model


def write_answers(count=40, seed=3):
    """Reference answers in a file, as texts, and the ids of their rows."""
    pairs = preference_pairs(count, seed=seed)
    Path("answers.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    texts = [pair["prompt"] + pair["chosen"] + TOKENIZER.eos_token for pair in pairs]
    return [TOKENIZER(text)["input_ids"][-LENGTH:] for text in texts]


def rewards_of(model, rows):
    """What the model itself makes of these rows, one by one."""
    with torch.no_grad():
        pairs = [pad_rows([row], pad_token_id=0, side="left") for row in rows]
        return torch.cat([model(ids, attention_mask=mask) for ids, mask in pairs])


def calibrate(capsys, *more, checkpoint="rm.pt"):
    """The command's status, and its facts or its error."""
    files = [checkpoint, "--pretrained", "pretrained", "--data", "answers.jsonl"]
    options = ["--max-length", str(LENGTH), "--device", "cpu", "--json", *more]
    status = main(["calibrate", *map(str, files), *options])
    return status, json.loads(capsys.readouterr().out)


def refused(capsys, *more, **given):
    status, facts = calibrate(capsys, *more, **given)
    assert status == 2
    assert facts["error"] == "InputError"
    return facts["message"]


# --- formats -----------------------------------------------------------------------------------


def booster():
    from colossalai.booster import Booster

    return Booster()


FORMATS = {
    "torch.save": (
        "rm.pt",
        lambda model, path: torch.save(model.state_dict(), path),
        lambda model, path: model.load_state_dict(torch.load(path)),
    ),
    **{
        f"Booster {name}": (
            path,
            lambda model, path, given=given: booster().save_model(model, path, **given),
            lambda model, path: booster().load_model(model, path),
        )
        for name, path, given in (
            (".bin", "rm.bin", {}),
            ("safetensors", "rm.safetensors", {"use_safetensors": True}),
            ("folder", "modeling", {"shard": True}),
            ("safetensors folder", "modeling", {"shard": True, "use_safetensors": True}),
        )
    },
}


@pytest.fixture(params=FORMATS)
def kind(request):
    """The name of a checkpoint, and how it is saved and loaded."""
    if request.param != "torch.save" and version_of("colossalai") is None:
        pytest.skip("colossalai is not installed")
    return FORMATS[request.param]


def contents(path):
    """The bytes of the weights in each file, without what is in a stamp."""
    found = {}
    for file in seal.weights_of(Path(path)):
        if file.suffix in (".pt", ".bin"):
            weights = torch.load(str(file))
            found[file.name] = [(key, item.numpy().tobytes()) for key, item in weights.items()]
        else:
            found[file.name] = file.read_bytes()
    return found


@pytest.mark.enough("G1", "G4", why="coati takes no part in it; the keys are those of two forms")
def test_mean_and_spread_are_the_models_own_and_are_kept_with_it(upstream, kind, capsys):
    path, save, load = kind
    with coati_ext.applied():
        model = reward_model()
        save(model, path)
        rows = write_answers()
        raw = rewards_of(model, rows).double().numpy()
    before = contents(path)
    status, facts = calibrate(capsys, checkpoint=path)
    assert status == 0
    measured, held_out = split(len(rows), 0.1)
    mean, spread = raw[measured].mean(), raw[measured].std()
    assert facts["mean"] == pytest.approx(mean, abs=1e-5)
    assert facts["spread"] == pytest.approx(spread, rel=1e-5)
    assert (facts["measured_answers"], facts["held_out_answers"]) == (36, 4)
    assert facts["held_out"]["before"]["mean"] == pytest.approx(raw[held_out].mean(), abs=1e-5)
    after = (raw[held_out] - mean) / spread
    assert facts["held_out"]["after"]["mean"] == pytest.approx(after.mean(), abs=1e-4)
    assert facts["held_out"]["after"]["spread"] == pytest.approx(after.std(), rel=1e-4)
    assert facts["held_out"]["standard_error"] == pytest.approx(after.std() / 2, rel=1e-4)
    assert facts["replaced"] is None

    # No weight has changed, the seal is true, and the model is scaled wherever it is loaded.
    assert contents(path) == before
    found, why = stamp.read(Path(path))
    assert why == ""
    assert (found.scale.mean, found.scale.count) == (facts["mean"], 36)
    assert re.fullmatch("[0-9a-f]{12}", found.scale.source)
    with coati_ext.applied(SCALED):
        again = reward_model(seed=1)
        load(again, path)
        scaled = rewards_of(again, rows).double().numpy()
        assert scaled == pytest.approx((raw - mean) / spread, abs=1e-4)
    with coati_ext.applied():  # and not where nobody asks for it
        again = reward_model(seed=1)
        load(again, path)
        assert rewards_of(again, rows).double().numpy() == pytest.approx(raw, abs=1e-6)


def test_every_family_and_generation_is_read_as_it_is_patched(upstream, family, capsys):
    with coati_ext.applied():
        model = reward_model(family)
        torch.save(model.state_dict(), "rm.pt")
        rows = write_answers()
        raw = rewards_of(model, rows).double().numpy()[split(len(rows), 0.1)[0]]
    _, facts = calibrate(capsys)
    assert facts["mean"] == pytest.approx(raw.mean(), abs=1e-5)
    assert facts["spread"] == pytest.approx(raw.std(), rel=1e-5)


def saved(upstream_form=False, **changes):
    """A stamped checkpoint ``rm.pt``, and the rows of the answers."""
    with coati_ext.applied():
        weights = reward_model().state_dict()
    if changes:
        found = stamp.of_metadata(weights._metadata[""], "rm.pt")
        stamp.put(weights, dataclasses.replace(found, **changes))
    if upstream_form:
        del weights._metadata[""]["coati_ext"]
    torch.save(weights, "rm.pt")
    return write_answers()


ONE = pytest.mark.enough("G4", why="the command knows no coati")


@ONE
def test_ids_as_coati_prepares_them_are_rows_as_they_are(upstream, capsys):
    """G3's and G4's conversations end in a text of their template, and may have no BOS."""
    rows = [row[1:-1] for row in saved()]
    lines = [{"chosen_input_ids": row, "chosen_loss_mask": [1] * len(row)} for row in rows]
    Path("answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with coati_ext.applied():
        raw = rewards_of(reward_model(), rows).double().numpy()[split(len(rows), 0.1)[0]]
    _, facts = calibrate(capsys)
    assert facts["mean"] == pytest.approx(raw.mean(), abs=1e-5)


@ONE
def test_calibrating_again_replaces_and_tells(upstream, capsys):
    saved()
    _, first = calibrate(capsys)
    content = Path("rm.pt").read_bytes()
    _, second = calibrate(capsys)
    assert second["mean"] == first["mean"]
    assert second["replaced"]["mean"] == first["mean"]
    assert torch.load("rm.pt")._metadata[""]["coati_ext"]["scale"]["mean"] == str(first["mean"])
    assert len(Path("rm.pt").read_bytes()) == len(content)


@ONE
def test_an_answer_that_comes_again_counts_once(upstream, capsys):
    saved()
    text = Path("answers.jsonl").read_text()
    Path("answers.jsonl").write_text(text + text)
    assert calibrate(capsys)[1]["measured_answers"] == 36


@ONE
def test_the_view_tells_before_and_after(upstream, capsys):
    saved()
    files = ["rm.pt", "--pretrained", "pretrained", "--data", "answers.jsonl"]
    assert main(["calibrate", *files, "--max-length", str(LENGTH)]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == "Rewards of 36 reference answers by rm.pt, and of 4 held out:"
    (after,) = [line.split() for line in lines if line.startswith("after")]
    assert after[1:3] == ["0.0000", "1.0000"]
    assert "no weight has changed" in " ".join(lines)
    assert "scoring the answers" in err


@ONE
def test_a_model_without_a_stamp_needs_to_be_vouched_for(upstream, capsys):
    saved(upstream_form=True)
    told = refused(capsys)
    assert "rm.pt: it carries no stamp" in told
    assert "--generation" in told
    assert "coati-ext migrate" in told
    assert calibrate(capsys, "--generation", "G3")[0] == 0
    found, _ = stamp.read(Path("rm.pt"))
    assert (found.generation, found.pooling, found.padding) == ("G3", "eos", "left")


@ONE
def test_keys_in_a_wrapper_keep_their_stamp_with_them(upstream, capsys):
    """As G2's script saves a model inside its DDP wrapper."""
    rows = saved()
    with coati_ext.applied():
        model = reward_model()
        raw = rewards_of(model, rows)
        torch.save(torch.nn.ModuleDict({"module": model}).state_dict(), "rm.pt")
    _, facts = calibrate(capsys)
    with coati_ext.applied(SCALED):
        again = reward_model(seed=1)
        again.load_state_dict(torch.load("rm.pt"))
        expected = (raw - facts["mean"]) / facts["spread"]
        assert torch.allclose(rewards_of(again, rows), expected, atol=1e-4)


# --- what is refused ---------------------------------------------------------------------------


@ONE
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"pooling": "masked_mean"}, "another form (pooling)"),
        ({"pooling": "mean over all columns"}, "needs `coati-ext migrate` first"),
        ({"tokenizer": "another"}, "Give the --tokenizer that it was trained with"),
        ({"end_token": 7}, "another form (end_token)"),
        ({"kind": "critic"}, "rm.pt is a critic: a reward model was expected"),
    ],
)
def test_a_model_of_another_form_is_refused(upstream, capsys, changes, told):
    saved(**changes)
    before = Path("rm.pt").read_bytes()
    assert told in refused(capsys)
    assert Path("rm.pt").read_bytes() == before


@ONE
def test_lora_weights_of_an_unknown_scale_are_refused(upstream, capsys):
    saved(generation="G4")
    weights = torch.load("rm.pt")
    weights["model.h.0.attn.c_attn.lora_A"] = torch.zeros(2, 16)
    torch.save(weights, "rm.pt")
    assert "rm.pt has LoRA weights of G4, whose scale is in no file" in refused(capsys)


@ONE
@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"prompt": "word1"}', "line 1: chosen missing (found prompt)"),
        ('{"prompt": "word1", "chosen": 3}', "line 1: chosen is int, a text was expected"),
        ('{"chosen_input_ids": []}', "line 1: chosen_input_ids is no list of token ids"),
        ('{"chosen_input_ids": [1, -2]}', "line 1: chosen_input_ids is no list of token ids"),
        ("word1", "line 1: no JSON"),
    ],
)
def test_a_line_that_is_no_answer_is_named(upstream, capsys, line, told):
    saved()
    Path("answers.jsonl").write_text(line + "\n")
    message = refused(capsys)
    assert told in message
    assert "no reference answers" in message


@ONE
def test_what_cannot_be_measured_is_refused(upstream, capsys):
    saved()
    assert "there is no checkpoint no.pt" in refused(capsys, checkpoint="no.pt")
    assert "--held-out 2: a share of the answers" in refused(capsys, "--held-out", "2")
    assert "more than the 128 positions" in refused(capsys, "--max-length", "300")
    Path("answers.jsonl").write_text(
        '{"chosen_input_ids": [9, 999999]}\n' * 2 + '{"chosen_input_ids": [8]}'
    )
    assert "the id 999999" in refused(capsys, "--held-out", "0.5")
    Path("answers.jsonl").write_text("")
    assert "give more answers" in refused(capsys)


@ONE
def test_equal_rewards_leave_no_spread(upstream, capsys):
    saved()
    weights = torch.load("rm.pt")
    weights["value_head.weight"].zero_()
    torch.save(weights, "rm.pt")
    assert "leaves no spread to divide by" in refused(capsys)


@ONE
def test_rewards_that_are_none_are_named_by_their_line(upstream, capsys):
    saved()
    weights = torch.load("rm.pt")
    weights["value_head.weight"].fill_(3e38)
    weights["model.ln_f.weight"].fill_(3e38)
    torch.save(weights, "rm.pt")
    assert "the answer of line 1 is nan or infinite" in refused(capsys)


# --- at once or not at all ---------------------------------------------------------------------


@ONE
def test_weights_that_are_written_meanwhile_are_not_sealed(upstream, capsys, monkeypatch):
    saved()
    right = calibrating._scores

    def slow(*given):
        os.utime("rm.pt", (1, 1))
        return right(*given)

    monkeypatch.setattr(calibrating, "_scores", slow)
    before = Path("rm.pt").read_bytes()
    assert "rm.pt was written to meanwhile: nothing was changed" in refused(capsys)
    assert Path("rm.pt").read_bytes() == before


@ONE
@pytest.mark.parametrize("failing", ["torch.save", "os.replace"])
def test_a_write_that_fails_leaves_the_checkpoint_as_it_was(upstream, capsys, monkeypatch, failing):
    saved()
    before = Path("rm.pt").read_bytes()

    def fail(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(failing, fail)
    assert "cannot write rm.pt: no space left on device" in refused(capsys)
    assert Path("rm.pt").read_bytes() == before
    assert sorted(os.listdir()) == ["answers.jsonl", "pretrained", "rm.pt"]


@ONE
@with_colossalai
def test_a_kill_between_weights_and_stamp_file_leaves_a_true_stamp(upstream, capsys, monkeypatch):
    """The file beside is then of other weights, and the stamp inside the weights counts."""
    with coati_ext.applied():
        booster().save_model(reward_model(), "rm.bin")
    write_answers()

    class Killed(BaseException):
        pass

    def kill(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(stamp, "write", kill)
        with pytest.raises(Killed):
            calibrate(capsys, checkpoint="rm.bin")
    found, _ = stamp.read(Path("rm.bin"))
    assert found.scale.count == 36


@ONE
def test_the_mode_of_the_file_is_kept(upstream, capsys):
    saved()
    os.chmod("rm.pt", 0o640)
    calibrate(capsys)
    assert os.stat("rm.pt").st_mode & 0o777 == 0o640


def test_moments_are_numpys():
    scores = torch.tensor([1.0, 2.5, -4.0, 8.0], dtype=torch.float64)
    expected = numpy.array([1.0, 2.5, -4.0, 8.0])
    assert calibrating._level(scores) == pytest.approx((expected.mean(), expected.std()))
