"""A mean-pooled reward model of G1 gets a head for the end token, and is told about truly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import coati_ext
from coati_ext.checkpoints import stamp
from coati_ext.checkpoints.migrate.data import split
from coati_ext.checkpoints.migrate.head import fit
from coati_ext.cli import main
from coati_ext.testing import (
    preference_pairs,
    tiny_config,
    tiny_reward_model,
    tiny_tokenizer,
    train_reward_model,
)
from coati_ext.testing.preferences import WORDS

ATOL = 1e-5  # float32; scores spread by about 1
LENGTH = 96  # shorter than many rows, so that some are cut
SIZES = {"hidden_size": 16, "layers": 1, "max_positions": 128}

pytestmark = pytest.mark.generations("G1")


def write_pairs(count=60, seed=3):
    pairs = preference_pairs(count, seed=seed)
    Path("pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return pairs


def trained(family):
    """A reward model that upstream has trained for a moment, with its tokenizer's folder."""
    tokenizer = tiny_tokenizer(pad="eos")
    model = tiny_reward_model(family, **SIZES)
    pairs = preference_pairs(64, seed=1)
    train_reward_model(model, pairs, tokenizer=tokenizer, epochs=3, max_length=LENGTH)
    model.model.config.save_pretrained("pretrained")
    tokenizer.save_pretrained("pretrained")
    return model, tokenizer


def with_lora():
    """An OPT whose low-rank terms are not zero, as v0.3.1 and later save it."""
    from coati.models.opt import OPTRM

    tokenizer = tiny_tokenizer(padding_side="left")
    torch.manual_seed(0)
    model = OPTRM(config=tiny_config("opt", **SIZES), lora_rank=2).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    model.model.config.torch_dtype = torch.float16  # as in many a published configuration
    model.model.config.save_pretrained("pretrained")
    tokenizer.save_pretrained("pretrained")
    assert any("lora_A" in key for key in model.state_dict())
    return model, tokenizer


def migrate(capsys, *more, checkpoint="rm.pt", output="new.pt"):
    """The command's status, its facts or error, and what it wrote to the error stream."""
    files = [checkpoint, "--pretrained", "pretrained", "--data", "pairs.jsonl", "--output", output]
    status = main(
        ["migrate", *files, "--max-length", str(LENGTH), "--device", "cpu", "--json", *more]
    )
    out, err = capsys.readouterr()
    return status, json.loads(out), err


def upstream_scores(model, pairs, tokenizer):
    """Scores (N, 2) that coati itself gives to its own dataset's rows, in the form of now."""
    from coati.dataset import RmStaticDataset

    data = RmStaticDataset(pairs, tokenizer, LENGTH)
    items = [[part.view(-1) for part in data[index]] for index in range(len(data))]
    with torch.no_grad():
        return torch.stack(
            [
                model(torch.stack([i[k] for i in items]), torch.stack([i[k + 1] for i in items]))
                for k in (0, 2)
            ],
            dim=1,
        )


def held_out_of(pairs, count):
    return split(pairs, count / pairs)[1]


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def loss(scores):
    return torch.nn.functional.softplus(scores[:, 1] - scores[:, 0]).mean().item()


def accuracy(scores):
    return (scores[:, 0] > scores[:, 1]).double().mean().item()


def save_whole(state, _):
    torch.save(state, "rm.pt")


def save_wrapped(state, _):
    """As v0.3.0 saves a model inside DistributedDataParallel."""
    torch.save({f"module.{key}": value for key, value in state.items()}, "rm.pt")


def save_shards(state, ending):
    """As ColossalAI's checkpoint input and output does."""
    folder = Path("rm.pt")
    folder.mkdir()
    names = {key: f"shard-{number % 2}.{ending}" for number, key in enumerate(state)}
    for name in set(names.values()):
        part = {key: value for key, value in state.items() if names[key] == name}
        if ending == "safetensors":
            from safetensors.torch import save_file

            save_file(part, str(folder / name))
        else:
            torch.save(part, str(folder / name))
    index = {"metadata": {"total_size": 0}, "weight_map": names}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("make", "save"),
    [
        (lambda: trained("gpt2"), (save_whole, "")),
        (with_lora, (save_shards, "bin")),
        (lambda: trained("llama"), (save_shards, "safetensors")),
        (lambda: trained("bloom"), (save_wrapped, "")),
    ],
    ids=["gpt2", "opt, lora, shards", "llama, safetensors", "bloom, DDP"],
)
def test_what_it_tells_is_what_coati_says(upstream, capsys, make, save):
    """Before, between and after: coati's own scores of coati's own rows, flag off and on."""
    model, tokenizer = make()
    pairs = write_pairs()
    write, ending = save
    write(model.state_dict(), ending)
    status, facts, _ = migrate(capsys, "--held-out", "0.3")
    assert status == 0

    before = upstream_scores(model, pairs, tokenizer)
    original = {key: value.clone() for key, value in model.state_dict().items()}
    written = torch.load("new.pt", weights_only=True)
    with coati_ext.applied():
        unfitted = upstream_scores(model, pairs, tokenizer)
        whole = torch.nn.ModuleDict({"module": model}) if write is save_wrapped else model
        whole.load_state_dict(written)
        after = upstream_scores(model, pairs, tokenizer)

    for key, value in model.state_dict().items():
        assert value.dtype == original[key].dtype
        assert value.equal(original[key]) == ("value_head" not in key)
    held_out = held_out_of(60, 18)
    assert (facts["fitted_pairs"], facts["held_out_pairs"]) == (42, 18)
    assert facts["pair_accuracy"] == {
        "mean_pooled": pytest.approx(accuracy(before[held_out])),
        "read_at_eos": pytest.approx(accuracy(unfitted[held_out])),
        "refitted": pytest.approx(accuracy(after[held_out])),
    }
    assert facts["held_out_loss"] == {
        "mean_pooled": pytest.approx(loss(before[held_out]), abs=ATOL),
        "read_at_eos": pytest.approx(loss(unfitted[held_out]), abs=ATOL),
        "refitted": pytest.approx(loss(after[held_out]), abs=ATOL),
    }
    for example, pair in zip(facts["examples"], held_out):
        assert example == {
            "line": pair + 1,
            "chosen_before": pytest.approx(before[pair, 0].item(), abs=ATOL),
            "chosen_after": pytest.approx(after[pair, 0].item(), abs=ATOL),
            "rejected_before": pytest.approx(before[pair, 1].item(), abs=ATOL),
            "rejected_after": pytest.approx(after[pair, 1].item(), abs=ATOL),
        }
    fitted = [pair for pair in range(60) if pair not in held_out]
    assert after[fitted].mean().item() == pytest.approx(before[fitted].mean().item(), abs=ATOL)
    assert facts["fitting_loss"] == {
        "read_at_eos": pytest.approx(loss(unfitted[fitted]), abs=ATOL),
        "refitted": pytest.approx(loss(after[fitted]), abs=ATOL),
    }
    assert facts["fitting_loss"]["refitted"] < facts["fitting_loss"]["read_at_eos"]
    one, other = before[held_out].flatten().numpy(), after[held_out].flatten().numpy()
    pearson, spearman = (
        numpy.corrcoef(x, y)[0, 1]
        for x, y in ((one, other), (one.argsort().argsort(), other.argsort().argsort()))
    )
    assert facts["correlation"] == {
        "pearson": pytest.approx(pearson, abs=1e-4),
        "spearman": pytest.approx(spearman, abs=0.02),  # rounding swaps neighbours
    }

    found, _ = stamp.read(Path("new.pt"))
    assert (found.kind, found.pooling, found.padding) == ("reward model", "eos", "left")
    assert (found.end_token, found.generation) == (tokenizer.eos_token_id, "G1")
    assert found.tokenizer == stamp.tokenizer_fingerprint(tokenizer)
    assert sorted(file.name for file in Path().glob("*.pt*")) == ["new.pt", "rm.pt"]


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(python, capsys):
    """Killed without a word in the middle, and again asked the same: the same file, bit for bit."""
    command = [sys.executable, "-m", "coati_ext", "migrate", "rm.pt", "--pretrained", "pretrained"]
    command += ["--data", "pairs.jsonl", "--output", "new.pt", "--json"]
    command += ["--max-length", str(LENGTH), "--batch-size", "1", "--device", "cpu"]
    model, _ = trained("gpt2")
    torch.save(model.state_dict(), "rm.pt")
    write_pairs(300)
    part = Path("new.pt.part")
    running = subprocess.Popen(command, env=python.environment(), stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: len(list(part.glob("*.pt"))) >= 20 or running.poll() is not None)
        os.kill(running.pid, signal.SIGKILL)
    finally:
        running.wait()
    assert running.returncode == -signal.SIGKILL
    assert not Path("new.pt").exists()
    done = len(list(part.glob("*.pt")))
    assert 20 <= done < 300

    write_pairs(300, seed=4)
    status, error, _ = migrate(capsys, "--batch-size", "2")
    assert status == 2
    for name in ("data", "batch_size: 1 there, 2 now", "new.pt.part", "remove that folder"):
        assert name in error["message"]
    assert "tokenizer" not in error["message"]
    write_pairs(300)
    status, facts, _ = migrate(capsys, "--batch-size", "1")
    assert status == 0
    assert (facts["batches"], facts["batches_resumed"]) == (300, done)

    status, facts, _ = migrate(capsys, "--batch-size", "1", output="again.pt")
    assert (status, facts["batches_resumed"]) == (0, 0)
    one, other = (torch.load(name, weights_only=True) for name in ("new.pt", "again.pt"))
    assert all(one[key].equal(other[key]) for key in one)


def test_a_run_killed_while_it_began_goes_on(upstream, capsys):
    model, _ = trained("gpt2")
    torch.save(model.state_dict(), "rm.pt")
    write_pairs(20)
    Path("new.pt.part").mkdir()
    Path("new.pt.part", "coati_ext.checkpoints.migrate.json.1.new").write_text("{")
    status, facts, _ = migrate(capsys)
    assert (status, facts["batches_resumed"]) == (0, 0)


def test_nothing_is_overwritten(upstream, capsys):
    model, _ = trained("gpt2")
    torch.save(model.state_dict(), "rm.pt")
    write_pairs(20)
    Path("linked.pt").symlink_to("rm.pt")
    Path("dangling.pt").symlink_to("nowhere.pt")
    Path("other.pt").write_text("mine")
    content = Path("rm.pt").read_bytes()
    for output in ("rm.pt", "./rm.pt", "linked.pt", "dangling.pt", "other.pt"):
        status, error, _ = migrate(capsys, output=output)
        assert status == 2
        assert "exists and is not overwritten: give another --output" in error["message"]
    Path("new.pt.part").mkdir()
    Path("new.pt.part", "mine").write_text("mine")
    status, error, _ = migrate(capsys)
    assert status == 2
    assert "new.pt.part is in the way" in error["message"]
    assert Path("rm.pt").read_bytes() == content
    assert Path("new.pt.part", "mine").read_text() == Path("other.pt").read_text() == "mine"
    assert not Path("nowhere.pt").exists()


def test_a_stamp_says_whether_there_is_anything_to_migrate(upstream, capsys):
    """Trained with `provenance` on and `eos_pooling` off there is; migrated, there is not."""
    model, _ = trained("gpt2")
    state = model.state_dict()
    mean = "mean over all columns"
    mark = stamp.Stamp("reward model", mean, "left", "from the mask", 2, "", "G1", "", "")
    stamp.put(state, mark)
    torch.save(state, "rm.pt")
    write_pairs(20)
    status, _, _ = migrate(capsys)
    assert status == 0
    status, error, _ = migrate(capsys, checkpoint="new.pt", output="twice.pt")
    assert status == 2
    assert "nothing to migrate" in error["message"]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (['{"prompt": "a", "chosen": " b"}'], ["line 1", "rejected missing", "prompt, chosen"]),
        (["", '{"prompt": "a", "chosen": 1, "rejected": ""}'], ["line 2", "chosen is int"]),
        (["[1]", "{"], ["line 1: an object", "line 2: no JSON", "2 of 2 lines of pairs.jsonl"]),
        (["{}"] * 8, ["line 5", "and 3 more lines"]),
        (['{"prompt": "", "chosen": "", "rejected": ""}'], ["--held-out", "1 pairs"]),
        ([], ["0 pairs"]),
    ],
    ids=["missing", "type", "no JSON", "many", "one pair", "empty"],
)
def test_bad_data_is_named_by_line(upstream, capsys, lines, words):
    Path("pairs.jsonl").write_text("\n".join(lines))
    status, error, _ = migrate(capsys)
    assert status == 2
    assert error["error"] == "InputError"
    for word in words:
        assert word in error["message"]


def test_bad_checkpoints_are_named(upstream, capsys):
    model, _ = trained("gpt2")
    state = model.state_dict()
    write_pairs(20)
    Path("folder").mkdir()

    def refused(content, *words, more=()):
        if content is not None:
            torch.save(content, "rm.pt")
        status, error, _ = migrate(capsys, *more, checkpoint="rm.pt" if content else "folder")
        assert (status, error["error"]) == (2, "InputError")
        for word in words:
            assert word in error["message"]
        assert not Path("new.pt").exists()

    refused(None, "folder has 0 files *.index.json", "the folder that ColossalAI wrote")
    index = Path("folder", "a.index.json")
    index.write_text("{}")
    refused(None, "a.index.json is no index of shards")
    index.write_text('{"weight_map": {"x": "b.bin"}}')
    refused(None, "folder lacks b.bin, which a.index.json names")
    refused({"step": 3}, "rm.pt holds no state dict")
    refused({"x.weight": torch.ones(1)}, "0 keys value_head.weight", "x.weight")
    key = "model.h.0.mlp.c_fc.weight"
    refused({k: v for k, v in state.items() if k != key}, f"{key[6:]} is missing", "GPT2Model")
    refused({**state, "model.odd": torch.ones(1)}, "odd is unknown")
    refused({**state, key: torch.ones(2, 3)}, "mlp.c_fc.weight is (2, 3), not (16, 64)")
    refused(state, "--max-length 300", "128 positions", more=("--max-length", "300"))
    refused(state, "no tokenizer in folder", more=("--tokenizer", "folder"))
    refused(state, "--device nonsense", more=("--device", "nonsense"))
    words = [*(f"x{number}" for number in range(60)), *WORDS]
    tiny_tokenizer(vocab=words).save_pretrained("other")
    refused(state, "the checkpoint knows 64 tokens", more=("--tokenizer", "other"))
    Path("rm.pt").write_bytes(b"nonsense")
    _, error, _ = migrate(capsys)
    assert "cannot read the weights in rm.pt" in error["message"]
    _, error, _ = migrate(capsys, checkpoint="nowhere.pt")
    assert "there is no checkpoint nowhere.pt" in error["message"]


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.integers(1, 40), st.floats(1e-3, 1e3), st.floats(0, 10))
def test_the_fit_never_loses_to_the_old_head(seed, pairs, unit, size):
    """Whatever the features, their scale and the old head; and scaling is seen through."""
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(pairs, 2, 6, generator=draw)
    hidden[..., 5] = 1.0  # a component that never varies
    start = size * torch.randn(6, generator=draw)

    def loss_of(weight):
        margin = (hidden[:, 0] - hidden[:, 1]).double() @ weight
        return torch.nn.functional.softplus(-margin).mean().item()

    weight = fit(hidden, start)
    assert weight.isfinite().all()
    assert weight.equal(fit(hidden, start))
    assert weight[5] == start[5]
    assert loss_of(weight) <= loss_of(start.double())
    scaled = fit(hidden * unit, start / unit)
    assert loss_of(scaled * unit) == pytest.approx(loss_of(weight), abs=1e-5)


def test_the_view_and_a_checkpoint_in_half_precision_with_a_grown_vocabulary(upstream, capsys):
    model, _ = trained("gpt2")
    state = {key: value.half() for key, value in model.state_dict().items()}
    table = state["model.wte.weight"]
    state["model.wte.weight"] = torch.cat([table, table[:3]])
    torch.save(state, "rm.pt")
    write_pairs(20)
    words = ["migrate", "rm.pt", "--pretrained", "pretrained", "--data", "pairs.jsonl"]
    assert main([*words, "--output", "new.pt", "--max-length", str(LENGTH)]) == 0
    out, err = capsys.readouterr()
    assert "re-fitted on 18 pairs, 2 held out" in out
    for line in ("mean-pooled, as it was", "old head at the end token", "re-fitted head"):
        assert line in out
    assert "Written to new.pt." in out
    assert "100%" in err
    written = torch.load("new.pt", weights_only=True)
    assert list(written) == list(state)
    assert {value.dtype for value in written.values()} == {torch.float16}
    assert written["model.wte.weight"].equal(state["model.wte.weight"])
