"""A checkpoint says how its reward model was trained, in every format, and is held to it."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import json
import pickle
import signal
import textwrap
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import coati_ext
from coati_ext.checkpoints import seal, stamp
from coati_ext.errors import ConfigError, StampError
from coati_ext.launch.installation import version_of
from coati_ext.patches.provenance import judgement, this_run, tokenizers
from coati_ext.testing import (
    cpu_only,
    cpu_plugins,
    experience_maker,
    make_experience,
    tiny_critic,
    tiny_models,
    tiny_reward_model,
    tiny_tokenizer,
)
from coati_ext.testing.padding import pad_rows
from coati_ext.testing.training import known
from helpers.processes import on_two_ranks
from helpers.stamps import SOME, TOKENIZER
from helpers.strategies import Case, bare_model, boost, runnable, weights_of

WARN, IGNORE = ({"provenance": {"on_mismatch": mode}} for mode in ("warn", "ignore"))
with_colossalai = pytest.mark.skipif(
    version_of("colossalai") is None, reason="colossalai is not installed"
)


@pytest.fixture(autouse=True)
def rows(monkeypatch):
    """Each test begins in a process that has seen no tokenizer and loaded no model."""
    monkeypatch.setattr(judgement, "_of_reward_models", set())
    for name, value in vars(this_run.RowsSeen()).items():
        monkeypatch.setattr(this_run.rows_seen, name, value)


def trained(family="gpt2", seed=0):
    """A reward model that this run's tokenizer made the rows of."""
    this_run.see(TOKENIZER)
    return tiny_reward_model(family, seed=seed)


def stamped_as(model, **changes):
    """The model's state dict with a stamp that differs from this run's form."""
    weights = model.state_dict()
    here = this_run.form_here("reward model")
    stamp.put(weights, dataclasses.replace(here, **changes))
    return weights


def flat(model):
    return torch.cat([item.detach().flatten().float() for item in model.state_dict().values()])


# --- formats ---------------------------------------------------------------------------------


def booster():
    from colossalai.booster import Booster

    return Booster()


def plain_file(model, folder):
    torch.save(model.state_dict(), str(folder / "rm.pt"))


def load_plain_file(model, folder):
    model.load_state_dict(torch.load(str(folder / "rm.pt")))


def strategy():
    base = importlib.import_module("coati.trainer.strategies.base").Strategy

    class Local(base):
        """One process, through a real Booster where the coati under test has one."""

        __abstractmethods__ = frozenset()

        def __init__(self):
            self.booster = booster() if version_of("colossalai") else None

    Local.__abstractmethods__ = frozenset()
    return Local()


def booster_format(name, **options):
    def save(model, folder):
        booster().save_model(model, str(folder / name), **options)

    def load(model, folder):
        booster().load_model(model, str(folder / name))

    return save, load


def checkpoint_parts(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)


def save_whole(model, folder):
    from coati.utils import save_checkpoint

    from coati_ext.testing.cpu import LocalCoordinator

    save_checkpoint(
        save_dir=str(folder),
        booster=booster(),
        model=model,
        optimizer=checkpoint_parts(model)[0],
        lr_scheduler=checkpoint_parts(model)[1],
        epoch=0,
        step=1,
        batch_size=1,
        coordinator=LocalCoordinator(),
    )


def load_whole(model, folder):
    from coati.utils import load_checkpoint

    optimizer, scheduler = checkpoint_parts(model)
    load_checkpoint(
        load_dir=str(folder / "epoch-0_step-1"),
        booster=booster(),
        model=model,
        optimizer=optimizer,
        lr_scheduler=scheduler,
    )


FORMATS = {
    "torch.save": (plain_file, load_plain_file),
    "Strategy": (
        lambda model, folder: strategy().save_model(model, str(folder / "rm.pt")),
        lambda model, folder: strategy().load_model(model, str(folder / "rm.pt")),
    ),
    "Booster .bin": booster_format("rm.bin"),
    "Booster safetensors": booster_format("rm.safetensors", use_safetensors=True),
    "Booster sharded": booster_format("folder", shard=True, size_per_shard=1),
    "Booster sharded safetensors": booster_format(
        "folder", shard=True, size_per_shard=1, use_safetensors=True
    ),
    "save_checkpoint": (save_whole, load_whole),
}


# Those of a Booster are the same code for every generation of coati, of which the first alone takes
# an unstamped checkpoint for another form: of the stand-ins the first and the last have them all.
ALL_FORMATS = ("G1", "G4")


@pytest.fixture(params=FORMATS)
def checkpoint(request, upstream):
    """How to save and load a model, and the generation."""
    first = upstream.generation in ("G1", "G2")
    if request.param == "Strategy" and not first:
        pytest.skip("G3 and G4 have no Strategy")
    if request.param == "save_checkpoint" and first:
        pytest.skip("G1 and G2 have no save_checkpoint")
    if request.param != "torch.save" and version_of("colossalai") is None:
        pytest.skip("colossalai is not installed")
    real = request.config.getoption("--coati")
    if request.param.startswith("Booster") and not real and upstream.generation not in ALL_FORMATS:
        pytest.skip(f"of the stand-ins {' and '.join(ALL_FORMATS)} have every format of a Booster")
    return FORMATS[request.param]


def test_a_checkpoint_makes_the_round_trip_from_on_to_off_to_on(checkpoint, tmp_path, capfd):
    save, load = checkpoint
    with coati_ext.applied():
        model = trained()
        expected = flat(model)
        save(model, tmp_path)
    other = tiny_reward_model("gpt2", seed=1)
    load(other, tmp_path)  # flag off: upstream knows nothing of stamps
    assert torch.equal(flat(other), expected)
    with coati_ext.applied():
        again = trained(seed=2)
        capfd.readouterr()
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            load(again, tmp_path)
        assert "stamp" not in capfd.readouterr().err
        assert torch.equal(flat(again), expected)
        assert vars(again)["coati_ext_stamp"]["tokenizer"] == stamp.tokenizer_fingerprint(TOKENIZER)


def test_weights_that_were_saved_with_the_flag_off_carry_no_old_stamp(
    checkpoint, upstream, tmp_path, capfd
):
    save, load = checkpoint
    with coati_ext.applied():
        save(trained(), tmp_path)
    save(tiny_reward_model("gpt2", seed=1), tmp_path)  # over it, flag off
    with coati_ext.applied():
        model = trained()
        before = flat(model)
        capfd.readouterr()
        if upstream.generation == "G1":
            with pytest.raises(StampError, match="coati-ext migrate"):
                load(model, tmp_path)
            assert torch.equal(flat(model), before)
        else:
            load(model, tmp_path)
            lines = [line for line in capfd.readouterr().err.splitlines() if "coati-ext:" in line]
            assert len(lines) == 1
            assert "taken for a reward model that was trained as this run uses it" in lines[0]


def test_a_reward_model_of_another_form_is_refused_in_every_format(checkpoint, tmp_path):
    """And nothing of it is loaded."""
    save, load = checkpoint
    with coati_ext.applied({"eos_pooling": {"pooling": "masked_mean"}}):
        save(trained(seed=1), tmp_path)
    with coati_ext.applied():
        model = trained()
        before = flat(model)
        with pytest.raises(StampError) as error:
            load(model, tmp_path)
        assert torch.equal(flat(model), before)
    told = str(error.value)
    assert "trained in another form (pooling)" in told
    assert "trained with: pooling masked_mean, padding left" in told
    assert "used here as: pooling eos, padding left" in told
    assert "provenance.on_mismatch" in told


# --- what is compared ------------------------------------------------------------------------


def test_a_stamp_says_what_the_model_was_trained_with(upstream):
    with coati_ext.applied() as report:
        reward_model = trained()
        expected = {
            "kind": "reward model",
            "pooling": "eos",
            "padding": "left",
            "position_ids": "from the mask",
            "end_token": TOKENIZER.eos_token_id,
            "tokenizer": stamp.tokenizer_fingerprint(TOKENIZER),
            "generation": upstream.generation,
            "version": coati_ext.__version__,
            "digest": report.digest,
        }
        assert stamp_in(reward_model.state_dict()).as_dict() == expected
        critic = tiny_critic("gpt2")
        del critic.coati_ext_stamp  # as if it were trained: it began as a reward model
        expected.update(kind="critic", pooling="before each token")
        assert stamp_in(critic.state_dict()).as_dict() == expected
        inside = torch.nn.ModuleDict({"rm": reward_model}).state_dict()._metadata
        assert inside["rm"]["coati_ext"]["kind"] == "reward model"


def test_without_the_other_patches_the_stamp_says_what_upstream_does(upstream):
    off = {name: {"enabled": False} for name in ("eos_pooling", "left_padding", "rollout")}
    with coati_ext.applied(off):
        written = trained().state_dict()._metadata[""]["coati_ext"]
        first = upstream.generation == "G1"
        assert written["pooling"] == ("mean over all columns" if first else "eos")
        assert (written["padding"], written["position_ids"]) == ("as it comes", "by column")


def test_state_dict_keys_and_weights_are_untouched(upstream):
    plain = tiny_reward_model("gpt2")
    before = {key: value.clone() for key, value in plain.state_dict().items()}
    with coati_ext.applied():
        after = trained().state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], value) for key, value in before.items())


CHANGES = {
    "pooling": "mean over all columns",
    "padding": "as it comes",
    "position_ids": "by column",
    "end_token": 3,
    "tokenizer": "another",
}


def test_each_part_of_the_form_is_compared(upstream):
    weights = {}
    with coati_ext.applied():
        for part, value in CHANGES.items():
            weights[part] = stamped_as(trained(seed=1), **{part: value})
            with pytest.raises(StampError, match=rf"another form \({part}\)"):
                trained().load_state_dict(weights[part])
    with coati_ext.applied(WARN):
        for part in CHANGES:
            with pytest.warns(UserWarning, match=rf"another form \({part}\)"):
                trained().load_state_dict(weights[part])
    with coati_ext.applied(IGNORE), warnings.catch_warnings():
        warnings.simplefilter("error")
        for part in CHANGES:
            trained().load_state_dict(weights[part])


def test_who_made_a_stamp_is_no_part_of_the_form(upstream):
    with coati_ext.applied():
        weights = stamped_as(trained(seed=1), generation="G9", version="9", digest="9")
        trained().load_state_dict(weights)


def test_what_is_unknown_differs_from_nothing(upstream):
    with coati_ext.applied():
        trained().load_state_dict(stamped_as(trained(), end_token=None, tokenizer=""))


def test_on_mismatch_is_one_of_three(upstream):
    with pytest.raises(ConfigError, match="did you mean warn"):
        coati_ext.enable({"provenance": {"on_mismatch": "warning"}})


def test_an_unstamped_checkpoint(upstream, capfd):
    """D1 of G1, where upstream trained the mean over all columns; the others read V(EOS)."""
    weights = tiny_reward_model("gpt2", seed=1).state_dict()
    with coati_ext.applied():
        model = trained()
        if upstream.generation == "G1":
            before = flat(model)
            with pytest.raises(StampError, match="coati-ext migrate"):
                model.load_state_dict(weights)
            assert torch.equal(flat(model), before)
        else:
            model.load_state_dict(weights)
            model.load_state_dict(weights)
            assert capfd.readouterr().err.count("it carries no stamp") == 1
    for mode in ("warn", "ignore"):
        with coati_ext.applied({"provenance": {"on_mismatch": mode}}):
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                model.load_state_dict(weights)
            warned = [item for item in seen if "stamp" in str(item.message)]
            assert len(warned) == (upstream.generation == "G1" and mode == "warn")


def test_upstreams_own_pooling_may_load_what_it_trained(upstream, capfd):
    weights = tiny_reward_model("gpt2", seed=1).state_dict()
    with coati_ext.applied({"eos_pooling": {"enabled": False}}):
        trained().load_state_dict(weights)
    assert "it carries no stamp" in capfd.readouterr().err


def test_a_critic_starts_from_a_reward_model_and_is_only_warned(upstream):
    with coati_ext.applied():
        weights = trained().state_dict()
        critic = tiny_critic("gpt2")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            critic.load_state_dict(weights)
        with pytest.warns(UserWarning, match=r"another form \(end_token\)"):
            critic.load_state_dict(stamped_as(trained(), end_token=3))


def check_told_of_a_critic(load, upstream, capfd, name):
    """Loading tells where these weights may come from: a warning in G3 and G4, else a line."""
    capfd.readouterr()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        load()
    late = upstream.generation in ("G3", "G4")
    warned = [str(it.message) for it in seen if "stamp" in str(it.message)]
    noted = [line for line in capfd.readouterr().err.splitlines() if "coati-ext: " in line]
    (told,) = warned if late else noted
    assert not (noted if late else warned)
    assert "it carries no stamp, so it is a reward model or a critic of a run without" in told
    assert ("grow with the length of the answer" in told) == late
    assert told.endswith("start from the reward model instead")
    assert name in told


def test_what_is_known_of_an_unstamped_critic_is_told(upstream, capfd):
    """Upstream's PPO trains it for other values: a run that went on from one collapsed."""
    weights = tiny_critic("gpt2", seed=1).state_dict()
    critic, silent, upstreams = (tiny_critic("gpt2") for _ in range(3))
    with coati_ext.applied():
        check_told_of_a_critic(
            lambda: critic.load_state_dict(weights), upstream, capfd, f"{__file__}:"
        )
        with warnings.catch_warnings():  # and told once
            warnings.simplefilter("error", UserWarning)
            critic.load_state_dict(weights)
        assert "stamp" not in capfd.readouterr().err
    with coati_ext.applied(IGNORE), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        silent.load_state_dict(weights)
        assert "stamp" not in capfd.readouterr().err
    with coati_ext.applied({"rollout": {"enabled": False}}), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        upstreams.load_state_dict(weights)
        assert "taken for a critic that was trained as this run uses it" in capfd.readouterr().err


@pytest.mark.enough("G1", "G4", why="they have one notice and one warning")
@with_colossalai
def test_a_critic_may_start_from_the_reward_models_unstamped_checkpoint(upstream, capfd, tmp_path):
    path, other = str(tmp_path / "rm.bin"), str(tmp_path / "other.bin")
    for name in (path, other):
        booster().save_model(tiny_reward_model("gpt2", seed=1), name)
    with coati_ext.applied({"eos_pooling": {"enabled": False}}):  # G1's would be refused
        booster().load_model(tiny_reward_model("gpt2"), path)
        critic = tiny_critic("gpt2")
        capfd.readouterr()
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            booster().load_model(critic, path)
        assert "stamp" not in capfd.readouterr().err
        check_told_of_a_critic(
            lambda: booster().load_model(tiny_critic("gpt2"), other), upstream, capfd, other
        )


def test_an_actor_is_nobodys_business(upstream, tmp_path):
    with coati_ext.applied():
        actor = tiny_models("gpt2").actor
        torch.save(actor.state_dict(), "actor.pt")
        assert "coati_ext" not in str(actor.state_dict()._metadata)
        actor.load_state_dict(torch.load("actor.pt"))
        if version_of("colossalai"):
            booster().save_model(actor, str(tmp_path / "actor"), shard=True)
            booster().load_model(actor, str(tmp_path / "actor"))
            assert not list(tmp_path.rglob(f"*{stamp.FILE}"))


# --- the tokenizer ---------------------------------------------------------------------------

OTHERS = {
    "tokenizer": tiny_tokenizer(padding_side="left", vocab=["other", "words"]),
    "same": tiny_tokenizer(padding_side="left", pad="eos"),  # pads are no part of a form
}


def rollout(maker, tokenizer, **given):
    ids, mask = pad_rows([[1, 5, 9], [1, 6]], pad_token_id=0, side="left", width=None)
    return make_experience(maker, ids, mask, tokenizer=tokenizer, max_length=10, **given)


@pytest.mark.parametrize("mine", ["tokenizer", "same"])
def test_ppo_stops_before_scoring_what_another_tokenizer_made(upstream, mine):
    tokenizer = OTHERS[mine]
    with coati_ext.applied():
        weights = trained().state_dict()
        models = tiny_models("gpt2")
        models.reward_model.load_state_dict(weights)
        maker = experience_maker(models, tokenizer=tokenizer)
        if mine == "same" or upstream.generation == "G1":  # which sees ids alone
            rollout(maker, tokenizer)
        else:
            with pytest.raises(StampError, match=r"another form \(tokenizer\)"):
                rollout(maker, tokenizer)


def test_ppo_stops_where_another_token_ends_a_row(upstream):
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(9)
    with coati_ext.applied():
        weights = trained().state_dict()
        models = tiny_models("gpt2")
        models.reward_model.load_state_dict(weights)
        maker = experience_maker(models, tokenizer=tokenizer)
        with pytest.raises(StampError, match="end_token") as error:
            rollout(maker, tokenizer)
        assert str(error.value).startswith(f"the state dict that {__file__}:")
        assert f"loads into a {type(models.reward_model).__name__}: this rew" in str(error.value)


@pytest.mark.enough("G1", "G4", why="the loader is ColossalAI's in each generation")
@with_colossalai
def test_a_rollout_that_stops_names_the_checkpoint(upstream, tmp_path):
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(9)
    path = str(tmp_path / "rm")
    with coati_ext.applied():
        booster().save_model(trained(), path, shard=True)
        models = tiny_models("gpt2")
        booster().load_model(models.reward_model, path)
        models = models._replace(reward_model=pickle.loads(pickle.dumps(models.reward_model)))
        maker = experience_maker(models, tokenizer=tokenizer)
        with pytest.raises(StampError, match="end_token") as error:
            rollout(maker, tokenizer)
        assert str(error.value).startswith(f"{path}: this reward model was trained in another form")


@pytest.mark.generations("G3", "G4")
def test_the_reward_model_trainer_refuses_to_go_on_with_another_tokenizer(upstream):
    from coati.trainer import RewardModelTrainer

    from coati_ext.testing import LocalBooster, LocalCoordinator

    with coati_ext.applied():
        model = tiny_reward_model("gpt2")
        model.load_state_dict(stamped_as(model, tokenizer="another"))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        offered = {
            "model": model,
            "booster": LocalBooster(),
            "optimizer": optimizer,
            "plugin": None,
            "lr_scheduler": None,
            "tokenizer": TOKENIZER,
            "coordinator": LocalCoordinator(),
        }
        with pytest.raises(StampError, match="tokenizer"):
            RewardModelTrainer(**known(RewardModelTrainer.__init__, offered))


def test_a_reward_dataset_or_trainer_tells_what_made_the_rows(upstream):
    from coati_ext.testing import preference_pairs, train_reward_model

    with coati_ext.applied():
        model = tiny_reward_model("gpt2")
        assert model.state_dict()._metadata[""]["coati_ext"]["tokenizer"] == ""
        train_reward_model(
            model, preference_pairs(4), tokenizer=TOKENIZER, batch_size=4, max_length=32
        )
        written = model.state_dict()._metadata[""]["coati_ext"]
        assert written["tokenizer"] == stamp.tokenizer_fingerprint(TOKENIZER)
        assert written["end_token"] == TOKENIZER.eos_token_id


# --- saved inside a wrapper ------------------------------------------------------------------


@pytest.mark.parametrize("wrappers", [1, 2], ids=["ZeRO", "DDP"])
def test_weights_saved_inside_a_wrapper_are_loaded(upstream, wrappers):
    """D39: G2 saves the wrapped model and loads that with strict=False, that is, nothing."""
    wrapped = trained(seed=1)
    for _ in range(wrappers):
        wrapped = torch.nn.ModuleDict({"module": wrapped})
    for strict in (False, True):
        lost = tiny_reward_model("gpt2")
        if strict:
            with pytest.raises(RuntimeError, match="Missing key"):
                lost.load_state_dict(wrapped.state_dict())
        else:
            lost.load_state_dict(wrapped.state_dict(), strict=False)
        assert torch.equal(flat(lost), flat(tiny_reward_model("gpt2")))
        with coati_ext.applied():
            model, critic = trained(), tiny_critic("gpt2")
            weights = wrapped.state_dict()
            keys = list(weights)
            model.load_state_dict(weights, strict=strict)
            critic.load_state_dict(weights, strict=strict)
            assert list(weights) == keys
            assert torch.equal(flat(model), flat(trained(seed=1)))
            assert torch.equal(flat(critic), flat(model))
            assert vars(model)["coati_ext_stamp"]["pooling"] == "eos"
            stamp.put(
                weights, dataclasses.replace(SOME, pooling="another"), keys[0][: 7 * wrappers - 1]
            )
            with pytest.raises(StampError, match="pooling"):
                model.load_state_dict(weights, strict=strict)


# --- no laundering ---------------------------------------------------------------------------


@pytest.mark.parametrize("stamped", [True, False], ids=["another stamp", "no stamp"])
def test_a_model_keeps_what_it_was_loaded_with_until_it_is_trained(upstream, stamped):
    """Loading with on_mismatch = ignore and saving again does not make an EOS-pooled model."""
    with coati_ext.applied(IGNORE):
        model = trained()
        weights = stamped_as(trained(seed=1), pooling="mean over all columns")
        if not stamped:
            del weights._metadata[""]["coati_ext"]
        model.load_state_dict(weights)
        with torch.no_grad():
            model(torch.tensor([[1, 5, 2]]), attention_mask=torch.ones(1, 3))
        for same in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            kept = same.state_dict()._metadata[""].get("coati_ext", {}).get("pooling")
            assert kept == ("mean over all columns" if stamped else None)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert b"coati_ext.checkpoints" not in pickle.dumps(model)
        model.train()
        model(torch.tensor([[1, 5, 2]]), attention_mask=torch.ones(1, 3)).sum().backward()
        assert model.state_dict()._metadata[""]["coati_ext"]["pooling"] == "eos"


def test_weights_that_come_again_and_again_leave_one_hook(upstream):
    model = tiny_reward_model("gpt2")
    with coati_ext.applied():
        weights = model.state_dict()
        for _ in range(3):
            model.load_state_dict(weights)
    assert sum(len(item._backward_hooks or ()) for item in model.parameters()) == 1


# --- broken stamps, broken saves -------------------------------------------------------------

BROKEN = {
    "no JSON": "{",
    "no text": b"\xff\xfe\x00",
    "a list": "[]",
    "a field less": json.dumps({"kind": "reward model"}),
    "another type": json.dumps({**SOME.as_dict(), "pooling": 3}),
    "a text for a number": json.dumps({**SOME.as_dict(), "end_token": "2"}),
}


@with_colossalai
def test_a_corrupt_stamp_is_an_error_that_names_its_file(upstream, tmp_path):
    file = tmp_path / "rm" / stamp.FILE
    contents = {
        name: content if isinstance(content, bytes) else content.encode()
        for name, content in BROKEN.items()
    }
    with coati_ext.applied():
        booster().save_model(trained(), str(tmp_path / "rm"), shard=True)
        for name, content in contents.items():
            file.write_bytes(content)
            with pytest.raises(StampError, match="corrupt") as error:
                booster().load_model(trained(), str(tmp_path / "rm"))
            assert str(file) in str(error.value), name
    with coati_ext.applied(IGNORE):
        for content in contents.values():
            file.write_bytes(content)
            booster().load_model(trained(), str(tmp_path / "rm"))


@with_colossalai
@pytest.mark.enough("G1", why="a Booster and a stamp file are the same in all generations")
def test_a_seal_of_0_3_0_is_taken_and_told(upstream, tmp_path, capfd):
    folder = tmp_path / "rm"
    with coati_ext.applied():
        booster().save_model(trained(), str(folder), shard=True)
        content = json.loads((folder / stamp.FILE).read_text())
        del content["checksum"]
        content["version"] = "0.3.0"
        content["weights"] = {it.name: seal._sampled_seal(it) for it in seal.weights_of(folder)}
        (folder / stamp.FILE).write_text(json.dumps(content))
        booster().load_model(trained(), str(folder))
        told = capfd.readouterr().err
        assert f"{folder}: its stamp was sealed by coati-ext 0.3.0, which hashed samples" in told
        booster().save_model(trained(), str(folder), shard=True)
        booster().load_model(trained(), str(folder))
        assert "0.3.0" not in capfd.readouterr().err


def test_a_corrupt_stamp_in_a_state_dict_is_an_error(upstream):
    with coati_ext.applied():
        model = trained()
        for wrong in ("text", {"kind": "reward model"}, None):
            weights = model.state_dict()
            weights._metadata[""]["coati_ext"] = wrong
            with pytest.raises(StampError, match=f"corrupt in the state dict that {__file__}:"):
                model.load_state_dict(weights)


@with_colossalai
def test_a_save_that_upstream_only_logs_as_failed_stamps_nothing(upstream, tmp_path):
    plain = tiny_reward_model("gpt2", seed=1)
    torch.save(plain.state_dict(), str(tmp_path / "rm.bin"))
    with coati_ext.applied():
        booster().save_model(trained(), str(tmp_path / "rm.bin"), shard=True)
        assert stamp.read(tmp_path / "rm.bin") == (None, "it carries no stamp")


KILLED = """
    import os, signal, sys
    import torch
    import coati_ext
    from coati_ext.checkpoints import seal, stamp
    from coati_ext.patches.provenance import this_run, tokenizers
    from coati_ext.testing import tiny_reward_model
    from colossalai.booster import Booster

    folder, moment, sharded = sys.argv[1], sys.argv[2], sys.argv[3] == "sharded"
    name = folder + ("/rm" if sharded else "/rm.bin")

    def die(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    def then_die(function):
        def run(*args, **kwargs):
            function(*args, **kwargs)
            die()
        return run

    coati_ext.enable({"eos_pooling": {"pooling": sys.argv[4]}})
    model = tiny_reward_model("gpt2", seed=int(sys.argv[5]))
    if moment == "before the weights":
        stamp.traces = die
    elif moment == "within the weights":
        def half(content, file, *args, **kwargs):
            with open(file, "r+b" if os.path.exists(file) else "wb") as stream:
                stream.write(b"half")
            die()
        torch.save = half
    elif moment == "after the weights":
        stamp.write = die
    elif moment == "within the stamp":
        os.replace = die
    Booster().save_model(model, name, shard=sharded)
"""


@pytest.mark.slow
@pytest.mark.generations("G4")
@pytest.mark.parametrize("sharded", ["sharded", "one file"])
@with_colossalai
def test_a_killed_save_leaves_no_stamp_that_is_not_of_its_weights(python, tmp_path, sharded):
    """A first save, pooled one way, is whole; a second one, pooled another way, is killed."""
    script = textwrap.dedent(KILLED)
    checkpoint = tmp_path / ("rm" if sharded == "sharded" else "rm.bin")

    def save(moment, pooling, seed):
        arguments = [str(tmp_path), moment, sharded, pooling, seed]
        return python.warm("-c", script, *arguments, check=False).returncode

    moments = ("before", "within", "after")
    for moment in (*(f"{when} the weights" for when in moments), "within the stamp"):
        assert save("never", "masked_mean", "1") == 0
        assert stamp.read(checkpoint)[0].pooling == "masked_mean"
        assert save(moment, "eos", "2") == -signal.SIGKILL
        found, _ = stamp.read(checkpoint)
        if found is not None:  # in the weights themselves, with which it was written at once
            weights = torch.load(str(checkpoint))
            assert sharded == "one file"
            assert found == stamp.of_metadata(weights._metadata[""], "")
            assert found.pooling == ("masked_mean" if moment == "before the weights" else "eos")


# --- strategies ------------------------------------------------------------------------------

WAYS = {
    "file": {},
    "safetensors": {"use_safetensors": True},
    "folder": {"shard": True},
    "safetensors folder": {"shard": True, "use_safetensors": True},
}


def saved_and_loaded(rank, folder, wrappings):
    """For each strategy and format: the stamp, whether the weights came back, what was refused."""
    import torch.distributed as dist

    result = {}
    with cpu_only(), cpu_plugins(), coati_ext.applied():
        for strategy_name, precision in wrappings:
            case = Case(strategy_name, precision, "gpt2", "reward model")
            saved = boost(case, bare_model("gpt2", "reward model", False, torch.device("cpu")))
            other = boost(case, tiny_reward_model("gpt2", seed=7))
            expected = weights_of(saved.model)
            for way, options in WAYS.items():
                suffix = ".safetensors" if way == "safetensors" else ".bin"
                path = Path(folder) / f"{strategy_name} {way}{suffix}"
                saved.booster.save_model(saved.model, str(path), **options)
                dist.barrier()
                found, why = stamp.read(path)
                other.booster.load_model(other.model, str(path))
                loaded = weights_of(other.model)
                result[f"{strategy_name}, {way}"] = [
                    found.pooling if found else why,
                    max(
                        float((loaded[key] - value).abs().max()) for key, value in expected.items()
                    ),
                ]
                dist.barrier()
    return result


@pytest.mark.slow
@with_colossalai
def test_every_strategy_stamps_every_format(newest, tmp_path):
    wrappings = [("ddp", "fp32"), ("gemini", "bf16"), ("zero1", "fp32"), ("zero2", "bf16")]
    wrappings = runnable([*wrappings, ("tensor", "fp32")])
    first, second = on_two_ranks(saved_and_loaded, tmp_path, str(tmp_path), wrappings)
    assert first == second
    assert len(first) == len(WAYS) * len(wrappings)
    assert {key: value for key, value in first.items() if value != ["eos", 0.0]} == {}


def test_a_loader_that_shows_each_module_all_weights_loses_none(on):
    """As colossalai's loader of whole checkpoints does: keys of others are left alone."""
    inside = torch.nn.ModuleDict({"before": torch.nn.Linear(2, 2), "rm": trained(seed=0)})
    other = torch.nn.ModuleDict({"before": torch.nn.Linear(2, 2), "rm": trained(seed=1)})
    weights = inside.state_dict()
    keys = list(weights)
    errors = []

    def load(module, prefix=""):
        told = weights._metadata.get(prefix[:-1], {})
        module._load_from_state_dict(weights, prefix, told, True, [], [], errors)
        for name, child in module._modules.items():
            load(child, f"{prefix}{name}.")

    load(other)
    assert errors == []
    assert list(weights) == keys
    assert flat(other).equal(flat(inside))


def test_only_models_of_coati_and_of_its_subclasses_are_known(upstream):
    from coati.models import Critic, RewardModel

    class Mine(RewardModel):
        pass

    def named(name, module):
        return type(name, (torch.nn.Module,), {"__module__": module})()

    for module in ("trl.models", "coati_tools.models", "apex.models"):
        for name in ("RewardModel", "Critic"):
            assert this_run.valued(named(name, module)) == (None, "")
    for cls, kind in ((RewardModel, "reward model"), (Mine, "reward model"), (Critic, "critic")):
        model = cls.__new__(cls)
        torch.nn.Module.__init__(model)
        assert this_run.valued(model) == (model, kind)


def test_a_model_of_an_unstamped_checkpoint_carries_no_stamp_until_it_is_trained(upstream):
    with coati_ext.applied(IGNORE):
        model = trained()
        model.load_state_dict(dict(trained(seed=1).state_dict()))  # no metadata, so no stamp
        assert stamp_in(model.state_dict()) is None
        model(torch.tensor([[1, 5, 2]]), attention_mask=torch.ones(1, 3)).sum().backward()
        assert stamp_in(model.state_dict()).pooling == "eos"


def test_a_state_dict_without_metadata_is_filled_as_before(on):
    plain = {}
    trained().state_dict(destination=plain)
    assert list(plain) == list(trained().state_dict())


def test_each_kind_of_model_is_framed_by_its_own_patch(upstream, monkeypatch):
    monkeypatch.setenv("COATI_EXT", "eos_pooling,provenance")
    with coati_ext.applied():  # before coati's modules are imported
        assert this_run.form_here("reward model").padding == "left"
        assert this_run.form_here("critic").padding == "as it comes"
    monkeypatch.setenv("COATI_EXT", "left_padding,stable_losses,rollout,provenance")
    with coati_ext.applied():
        assert this_run.form_here("reward model").padding == "as it comes"
        assert this_run.form_here("critic").padding == "left"


def test_an_experience_maker_without_a_tokenizer_tells_its_end_token(on):
    def make(self, *args, **kwargs):
        return kwargs

    bare = SimpleNamespace(reward_model=None)
    assert tokenizers.make_experience(make, bare, eos_token_id=7) == {"eos_token_id": 7}
    assert this_run.rows_seen.end_token == 7
    tokenizers.make_experience(make, bare)
    assert this_run.rows_seen.end_token == 7
    with_one = SimpleNamespace(reward_model=None, tokenizer=TOKENIZER)
    tokenizers.make_experience(make, with_one, eos_token_id=7)
    assert this_run.rows_seen.end_token == TOKENIZER.eos_token_id


def stamp_in(weights):
    return stamp.of_metadata(weights._metadata[""], "a test")
