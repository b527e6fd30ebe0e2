"""A mean-pooled reward model of G1 gets a head for the end token, and is told about truly."""

from __future__ import annotations

import itertools
import json
import os
import re
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
from coati_ext.checkpoints.migrate.head import chance_of, changes, fit
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


def trained(family, epochs=3):
    """A reward model that upstream has trained for a moment, with its tokenizer's folder."""
    tokenizer = tiny_tokenizer(pad="eos")
    model = tiny_reward_model(family, **SIZES)
    pairs = preference_pairs(64, seed=1)
    if epochs:
        train_reward_model(model, pairs, tokenizer=tokenizer, epochs=epochs, max_length=LENGTH)
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


@pytest.mark.parametrize("share", ["nan", "inf", "-inf", "-0.1", "0", "1", "1.5"])
def test_a_share_that_is_none_is_told(upstream, capsys, share):
    write_pairs(20)
    status, error, _ = migrate(capsys, f"--held-out={share}")
    assert status == 2
    expected = f"--held-out {share}: a share of the pairs between 0 and 1 was expected"
    assert error["message"] == expected


def test_a_missing_configuration_is_no_missing_tokenizer(upstream, capsys):
    write_pairs(20)
    Path("pretrained").mkdir()
    status, error, _ = migrate(capsys)
    assert status == 2
    assert error["message"].startswith("--pretrained pretrained has no configuration: ")
    assert "tokenizer" not in error["message"]
    tiny_config("gpt2", **SIZES).save_pretrained("pretrained")
    _, error, _ = migrate(capsys)
    assert error["message"].startswith("there is no tokenizer in --pretrained pretrained: ")
    assert "Give the --tokenizer" in error["message"]


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("key", "wrong"),
    [("value_head.weight", NAN), ("value_head.bias", INF), ("model.wte.weight", -INF)],
)
def test_a_checkpoint_whose_numbers_are_none_is_refused(upstream, capsys, key, wrong):
    model, _ = trained("gpt2", epochs=0)
    state = model.state_dict()
    state[key].view(-1)[-1] = wrong
    torch.save(state, "rm.pt")
    write_pairs(20)
    status, error, _ = migrate(capsys)
    assert (status, error["error"]) == (2, "InputError")
    assert f"rm.pt has numbers that are nan or infinite in {key}" in error["message"]
    assert not list(Path().glob("new.pt*"))


def test_a_model_that_computes_no_numbers_is_refused(upstream, capsys):
    """What overflows only on the way, and what the checkpoint's precision cannot hold."""
    model, _ = trained("gpt2", epochs=0)
    state = model.state_dict()
    large = {**state, "model.ln_f.weight": torch.full((16,), 3e38)}
    torch.save(large, "rm.pt")
    write_pairs(20)
    for _ in range(2):  # and once more, from what the first run has kept
        status, error, _ = migrate(capsys)
        assert (status, error["error"]) == (2, "InputError")
        assert "is nan or infinite for the chosen answer of line 1" in error["message"]
        assert not Path("new.pt").exists()
    small = {key: value.half() for key, value in state.items()}
    small["model.ln_f.weight"] = torch.full((16,), 1e-7, dtype=torch.float16)
    small["model.ln_f.bias"] = torch.zeros(16, dtype=torch.float16)
    torch.save(small, "rm.pt")
    status, error, _ = migrate(capsys, output="half.pt")
    assert (status, error["error"]) == (2, "InputError")
    assert "does not fit into the torch.float16 of rm.pt" in error["message"]
    assert not Path("half.pt").exists()


def test_an_output_that_cannot_be_written_is_told(upstream, capsys):
    model, _ = trained("gpt2", epochs=0)
    save_shards(model.state_dict(), "bin")
    write_pairs(20)
    for output, told in (
        ("rm.pt/new.pt", "would lie in the folder of the checkpoint"),
        ("nowhere/new.pt", "there is no folder nowhere for --output"),
        ("/proc/new.pt", "cannot write into /proc/new.pt.part"),
    ):
        status, error, _ = migrate(capsys, output=output)
        assert (status, error["error"]) == (2, "InputError")
        assert told in error["message"]
    Path("new.pt.part").write_text("mine")
    status, error, _ = migrate(capsys)
    assert status == 2
    assert "new.pt.part is in the way" in error["message"]
    assert Path("new.pt.part").read_text() == "mine"


def test_a_pair_that_comes_again_counts_once(upstream, capsys):
    """Or the held-out pairs would be among those that were fitted."""
    model, _ = trained("gpt2", epochs=0)
    torch.save(model.state_dict(), "rm.pt")
    pairs = write_pairs(20)
    file = Path("pairs.jsonl")
    file.write_text(file.read_text() * 2 + json.dumps({**pairs[0], "chosen": " else"}) + "\n")
    status, facts, _ = migrate(capsys)
    assert status == 0
    assert facts["fitted_pairs"] + facts["held_out_pairs"] == 21


@pytest.mark.parametrize("informed", [True, False], ids=["informed", "uninformed"])
def test_a_head_that_loses_more_than_chance_allows_is_told(upstream, capsys, monkeypatch, informed):
    """Where the backbone brings the preference to the last token, and where it brings noise."""
    import coati_ext.checkpoints.migrate as module

    model, _ = trained("gpt2", epochs=0)
    torch.save(model.state_dict(), "rm.pt")
    write_pairs(300)

    def compute(task, model, tokenizer, pairs):
        draw = torch.Generator().manual_seed(0)
        old = torch.randn(len(pairs), 2, generator=draw)
        old[:, 0] += 2.0
        hidden = torch.randn(len(pairs), 2, 16, generator=draw) * (not informed)
        hidden[..., 3] += 5 * old * informed
        return module.Features(hidden, old), 0

    monkeypatch.setattr(module, "compute", compute)
    words = ["migrate", "rm.pt", "--pretrained", "pretrained", "--data", "pairs.jsonl"]
    words += ["--output", "new.pt", "--held-out", "0.5", "--max-length", str(LENGTH)]
    assert main(words) == 0
    told = capsys.readouterr().out
    status, facts, _ = migrate(capsys, "--held-out", "0.5", output="again.pt")
    assert status == 0
    change = facts["held_out_change"]
    share = {name: value * 150 for name, value in facts["pair_accuracy"].items()}
    assert change["won"] - change["lost"] == pytest.approx(share["refitted"] - share["mean_pooled"])
    assert change["worse"] == (not informed)
    assert (change["probability_by_chance"] < 0.05) == change["worse"]
    assert f"{change['lost']} that were ranked right no longer are" in told
    assert ("Train it on before you use it" in told) == change["worse"]
    assert ("That is no sign of a loss" in told) == informed


def test_the_chance_of_losses_is_that_of_a_fair_coin():
    for changed in range(9):
        throws = [sum(throw) for throw in itertools.product((0, 1), repeat=changed)]
        for lost in range(changed + 1):
            expected = sum(heads >= lost for heads in throws) / len(throws)
            assert chance_of(lost, changed - lost) == pytest.approx(expected)
    assert chance_of(50, 23) < 0.002  # of 300 pairs, .83 to .74
    assert chance_of(2000, 2000) == pytest.approx(0.5, abs=0.01)


def test_what_a_change_of_ranks_is():
    before = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.0, 1.0]])
    after = torch.tensor([[1.0, 0.0], [0.5, 0.5], [1.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    assert changes(before, after) == (1, 2)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (['{"prompt": "a", "chosen": " b"}'], ["line 1", "rejected missing", "prompt, chosen"]),
        (["", '{"prompt": "a", "chosen": 1, "rejected": ""}'], ["line 2", "chosen is int"]),
        (
            ['{"prompt": "", "chosen": "a", "rejected": "b", "chosen": "c"}'],
            ["'chosen' comes twice"],
        ),
        (["[" * 10**5], ["line 1: no JSON: it is nested too deeply"]),
        (["[1]", "{"], ["line 1: an object", "line 2: no JSON", "2 of 2 lines of pairs.jsonl"]),
        (["{}"] * 8, ["line 5", "and 3 more lines"]),
        (['{"prompt": "", "chosen": "", "rejected": ""}'], ["--held-out", "1 pairs"]),
        ([], ["0 pairs"]),
    ],
    ids=["missing", "type", "twice", "deep", "no JSON", "many", "one pair", "empty"],
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
    refused(state, "no tokenizer in --tokenizer folder", more=("--tokenizer", "folder"))
    refused(state, "--device meta cannot be used", more=("--device", "meta"))
    refused(state, "--device nonsense", more=("--device", "nonsense"))
    words = [*(f"x{number}" for number in range(60)), *WORDS]
    tiny_tokenizer(vocab=words).save_pretrained("other")
    refused(state, "the checkpoint knows 64 tokens", more=("--tokenizer", "other"))
    for content in (b"nonsense", b"", b"PK\x03\x04", b"\x80\x02}q\x00X"):
        Path("rm.pt").write_bytes(content)
        _, error, _ = migrate(capsys)
        told = error["message"]
        assert "rm.pt is not a checkpoint: " in told
        assert re.search(r"checkpoint: [A-Za-z]+: ", told), told
    refused({1: torch.ones(1)}, "rm.pt holds no state dict: a key is 1")
    refused({**state, "value_head.bias": torch.ones(2)}, "a bias of (2,)", "(1, hidden size)")
    refused({**state, "value_head.weight": torch.ones(1, 9)}, "takes 9 components", "gives 16")
    refused({**state, "model.wte.lora_A": torch.ones(1, 2)}, "the LoRA weights in rm.pt do not fit")
    for text in ("[" * 10**5, '{"weight_map": {"x": 5}}', '{"weight_map": []}', "[]"):
        index.write_text(text)
        refused(None, "a.index.json is no index of shards")
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
