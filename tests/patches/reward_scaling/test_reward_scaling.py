"""Rewards are scaled once, by the right numbers, wherever a reward model shows them."""

from __future__ import annotations

import contextlib
import dataclasses
import pickle
import sys
from pathlib import Path

import numpy
import pytest
import torch

import coati_ext
from coati_ext.checkpoints import stamp
from coati_ext.checkpoints.stamp import Scale
from coati_ext.errors import ConfigError, StampError
from coati_ext.launch.installation import version_of
from coati_ext.patches import eos_pooling
from coati_ext.patches.provenance import this_run
from coati_ext.rollout import pipeline
from coati_ext.testing import (
    cpu_only,
    cpu_plugins,
    experience_maker,
    make_experience,
    preference_pairs,
    tiny_models,
    tiny_reward_model,
    tiny_tokenizer,
    train_reward_model,
)
from coati_ext.testing.padding import pad_rows
from helpers.ppo_steps import PROMPTS, scripted
from helpers.processes import on_two_ranks
from helpers.strategies import Case, bare_model, boost, runnable

SCALE = Scale(-0.75, 0.125, 40, "abcdef012345")  # of which float32 loses nothing
CALIBRATED = {"enabled": True, "mode": "reference"}
RUNNING = {"enabled": True, "mode": "running"}
ROWS = [[1, 9, 8, 7, 12, 2], [1, 5, 2], [1, 14, 6, 33, 21, 40, 17, 30, 9, 2]]
ANSWERS = [[20, 21, 22, 2], [23, 24, 25, 26, 27, 28, 2], [29, 2], [30, 31, 32, 33, 34, 2]]
OTHERS = [[40, 2], [41, 42, 43, 2], [44, 45, 2], [46, 47, 48, 49, 50, 51, 2]]
PLUGIN = """
from coati_ext import hookimpl

HEARD = []

@hookimpl
def experience_made(experience, rollout, judgement):
    HEARD.append((experience, rollout, judgement))

@hookimpl
def reward_step(chosen_reward, reject_reward):
    HEARD.append(("step", (chosen_reward + reject_reward).tolist()))

@hookimpl
def reward_evaluated(chosen_reward, reject_reward):
    HEARD.append(("evaluated", chosen_reward.tolist()))

@hookimpl
def rows_scored(reward):
    HEARD.append(("scored", reward.tolist()))
"""
with_colossalai = pytest.mark.skipif(
    version_of("colossalai") is None, reason="colossalai is not installed"
)


@contextlib.contextmanager
def scaling(settings, **more):
    """The patches with these settings of reward_scaling, and what observers hear."""
    Path("mine.py").write_text(PLUGIN)
    with coati_ext.applied({"plugins": ["./mine.py"], "reward_scaling": settings, **more}):
        heard = sys.modules["coati_ext_plugin_mine"].HEARD
        heard.clear()
        with cpu_only():
            yield heard


def calibrated(model, scale=SCALE):
    """The model as it is when it was loaded from a checkpoint with that scale."""
    weights = model.state_dict()
    here = this_run.form_here("reward model")
    stamp.put(weights, dataclasses.replace(here, scale=scale))
    model.load_state_dict(weights)
    return model


def rows():
    return pad_rows(ROWS, pad_token_id=0, side="right")


def rewards_of(model):
    ids, mask = rows()
    with torch.no_grad():
        return model(ids, attention_mask=mask)


def roll(models, monkeypatch, answers=ANSWERS, which=slice(None), **options):
    """Experience of scripted answers."""
    tokenizer = tiny_tokenizer(padding_side="left")
    maker = experience_maker(models, tokenizer=tokenizer, kl_coef=0.0, **options)
    prompts, mask = pad_rows(PROMPTS[which], pad_token_id=0, side="left", width=12)
    with monkeypatch.context() as patch:
        scripted(patch, answers[which])
        return make_experience(maker, prompts, mask, tokenizer=tokenizer, max_length=24)


def raw_scores(monkeypatch, answers=ANSWERS):
    """The scores of a rollout as the reward model gives them."""
    with scaling({}) as heard:
        roll(tiny_models("gpt2"), monkeypatch, answers)
        ((_, rollout, _),) = heard[-1:]
    return rollout.score


def close(found, expected):
    return torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


# --- off ---------------------------------------------------------------------------------------


def everything(monkeypatch):
    """All numbers of a reward model's training and evaluation and of a rollout."""
    tokenizer = tiny_tokenizer()
    model = tiny_reward_model("gpt2", vocab_size=len(tokenizer))
    pairs = preference_pairs(16)
    train_reward_model(model, pairs, tokenizer=tokenizer, batch_size=8, max_length=64)
    experience = roll(tiny_models("gpt2"), monkeypatch)
    fields = {name: item for name, item in vars(experience).items() if torch.is_tensor(item)}
    return {**model.state_dict(), "rewards": rewards_of(model), **fields}


@pytest.mark.parametrize(
    "settings", [{}, {"enabled": True, "mode": "off"}], ids=["off", "mode off"]
)
def test_off_changes_no_bit_of_anything(upstream, monkeypatch, settings):
    with scaling(settings):
        found = everything(monkeypatch)
    with scaling({}), monkeypatch.context() as patch:  # as if nobody asked for scaled rewards
        patch.setattr(eos_pooling.reward_model, "scaled_forward", lambda model, reward: reward)
        patch.setattr(pipeline, "scaled_rollout", lambda maker, scores: scores)
        expected = everything(monkeypatch)
    assert sorted(found) == sorted(expected)
    assert all(found[name].equal(item) for name, item in expected.items())
    assert len(found) > 10


def test_off_asks_for_no_calibration_and_leaves_one_alone(upstream):
    with coati_ext.applied():
        model = tiny_reward_model("gpt2")
        before = rewards_of(model)
        assert rewards_of(calibrated(model)).equal(before)
        assert model.state_dict()._metadata[""]["coati_ext"]["scale"] == SCALE.as_dict()


# --- reference ---------------------------------------------------------------------------------


def test_a_score_is_scaled_once_before_it_is_clipped(upstream, monkeypatch):
    """In a rollout, in its rewards and in a forward of the same rows it is one number."""
    raw = raw_scores(monkeypatch)
    with scaling(CALIBRATED, rollout={"score_clip": 3.0}) as heard:
        models = tiny_models("gpt2")
        calibrated(models.reward_model)
        roll(models, monkeypatch)
        ((_, rollout, judgement),) = [item for item in heard if item[0] != "scored"]
        with torch.no_grad():
            again = models.reward_model(
                rollout.frame.sequences, attention_mask=rollout.frame.attention_mask
            )
    expected = (raw + 0.75) / 0.125
    assert close(rollout.score, expected)
    assert close(again, expected)
    clipped = expected.clamp(-3, 3)
    assert not clipped.equal(expected)
    assert close(judgement.rewards.sum(dim=1), clipped)


@pytest.mark.generations("G3", "G4")
def test_the_logged_reward_is_the_scaled_one(upstream, monkeypatch):
    raw = raw_scores(monkeypatch)
    with scaling(CALIBRATED):
        models = tiny_models("gpt2")
        calibrated(models.reward_model)
        assert close(roll(models, monkeypatch).reward, (raw + 0.75) / 0.125)


def test_the_critic_is_not_scaled(upstream, monkeypatch):
    """Not even one that begins with the weights and the stamp of the reward model."""
    values = []
    for settings in ({}, CALIBRATED):
        with scaling(settings):
            models = tiny_models("gpt2")
            models.critic.load_state_dict(calibrated(models.reward_model).state_dict())
            values.append(roll(models, monkeypatch).values)
    assert values[0].equal(values[1])


@pytest.mark.generations("G4")
def test_grpo_takes_scaled_scores(upstream, monkeypatch):
    grpo = {"use_grpo": True, "num_generation": 2}
    answers = [answer for pair in zip(ANSWERS, OTHERS) for answer in pair]

    def scores(settings):
        with scaling(settings) as heard:
            models = tiny_models("gpt2")._replace(critic=None)
            if settings.get("mode") == "reference":
                calibrated(models.reward_model)
            roll(models, monkeypatch, answers, **grpo)
            return next(item[1] for item in heard if item[0] != "scored").score

    raw = scores({})
    assert len(raw) == 2 * len(PROMPTS)
    assert close(scores(CALIBRATED), (raw + 0.75) / 0.125)
    expected = (raw - raw.mean()) / raw.std(unbiased=False)
    assert close(scores(RUNNING), expected)


@pytest.mark.generations("G4")
def test_rewards_of_functions_keep_their_level(upstream, monkeypatch):
    from coati.models import RLVRRewardModel

    def length(input_ids, attention_mask, **_):
        return attention_mask.sum().float()

    for settings in (CALIBRATED, RUNNING):
        with scaling(settings):
            models = tiny_models("gpt2")._replace(reward_model=RLVRRewardModel([length]))
            made = roll(models, monkeypatch)
            assert made.reward.equal(made.attention_mask.sum(dim=1).float())


def test_training_sees_the_raw_rewards_and_their_gradient(upstream):
    with coati_ext.applied():
        model = tiny_reward_model("gpt2").train()
        before = model(*rows())
        before.sum().backward()
        gradient = model.value_head.weight.grad.clone()
    with scaling(CALIBRATED):
        model = calibrated(tiny_reward_model("gpt2")).train()
        rewards = model(*rows())
        assert rewards.equal(before)
        rewards.sum().backward()
        assert model.value_head.weight.grad.equal(gradient)


def test_in_evaluation_observers_hear_what_the_model_returns(upstream):
    """Those of ``rows_scored`` too, or metrics would compare scaled rewards with raw ones."""
    with coati_ext.applied():
        raw = rewards_of(tiny_reward_model("gpt2"))
    with scaling(CALIBRATED) as heard:
        found = rewards_of(calibrated(tiny_reward_model("gpt2")))
        assert close(found, (raw + 0.75) / 0.125)
        assert heard == [("scored", found.tolist())]


def test_a_model_that_is_trained_on_loses_its_calibration(upstream):
    """What was measured is not what it is now: its checkpoint has to be calibrated anew."""
    tokenizer = tiny_tokenizer()
    with scaling(CALIBRATED):
        this_run.see(tokenizer)
        model = calibrated(tiny_reward_model("gpt2", vocab_size=len(tokenizer)))
        assert "scale" in model.state_dict()._metadata[""]["coati_ext"]
        pairs = preference_pairs(8)
        train_reward_model(model, pairs, tokenizer=tokenizer, batch_size=4, max_length=64)
        assert "scale" not in model.state_dict()._metadata[""]["coati_ext"]
        in_evaluation = rewards_of(model)
        assert rewards_of(model.train()).equal(in_evaluation)


@pytest.mark.generations("G2", "G3", "G4")
def test_the_trainers_evaluation_shows_scaled_rewards(upstream, tmp_path):
    tokenizer = tiny_tokenizer()
    pairs = preference_pairs(4, seed=1)
    told = []
    for settings in ({}, CALIBRATED):
        with scaling(settings) as heard:
            this_run.see(tokenizer)
            model = calibrated(tiny_reward_model("gpt2", vocab_size=len(tokenizer)))
            train_reward_model(
                model,
                pairs[:1],  # less than a batch, so that no step is made
                tokenizer=tokenizer,
                batch_size=4,
                max_length=64,
                held_out=pairs,
                log_dir=str(tmp_path),
            )
            told += [item[1] for item in heard if item[0] == "evaluated"][-1:]
    raw, scaled = map(torch.tensor, told)
    assert close(scaled, (raw + 0.75) / 0.125)


def test_the_scale_comes_back_from_a_file_and_from_a_pickle(upstream, tmp_path):
    with coati_ext.applied():
        raw = rewards_of(tiny_reward_model("gpt2"))
    with scaling(CALIBRATED):
        torch.save(calibrated(tiny_reward_model("gpt2")).state_dict(), str(tmp_path / "rm.pt"))
        again = tiny_reward_model("gpt2", seed=3)
        again.load_state_dict(torch.load(str(tmp_path / "rm.pt")))
        assert close(rewards_of(again), (raw + 0.75) / 0.125)
        assert close(rewards_of(pickle.loads(pickle.dumps(again))), (raw + 0.75) / 0.125)


# --- what is missing ---------------------------------------------------------------------------


def test_a_checkpoint_without_a_calibration_is_an_error_that_says_what_to_type(upstream):
    with scaling(CALIBRATED):
        weights = tiny_reward_model("gpt2").state_dict()
        model = tiny_reward_model("gpt2")
        model.load_state_dict(weights)
        with pytest.raises(StampError) as error:
            rewards_of(model)
    told = str(error.value)
    assert f"the state dict that {__file__}:" in told
    assert "coati-ext calibrate CHECKPOINT --pretrained NAME --data ANSWERS.jsonl" in told
    assert "reward_scaling.mode = running" in told


@with_colossalai
@pytest.mark.enough("G1", "G4", why="the Booster is the same for all")
def test_the_error_names_the_file(upstream, tmp_path):
    from colossalai.booster import Booster

    path = str(tmp_path / "rm.bin")
    with scaling(CALIBRATED):
        Booster().save_model(tiny_reward_model("gpt2"), path)
        model = tiny_reward_model("gpt2")
        Booster().load_model(model, path)
        with pytest.raises(StampError, match=f"{path}: it is not calibrated") as error:
            rewards_of(model)
    assert f"coati-ext calibrate {path} --pretrained" in str(error.value)


def test_a_model_of_this_process_is_raw_in_its_evaluation_and_refused_in_a_rollout(
    upstream, monkeypatch
):
    with coati_ext.applied():
        raw = rewards_of(tiny_reward_model("gpt2"))
    with scaling(CALIBRATED):
        assert rewards_of(tiny_reward_model("gpt2")).equal(raw)
        monkeypatch.setattr(pipeline, "sample", lambda *_: pytest.fail("answers were sampled"))
        with pytest.raises(StampError, match="comes from no checkpoint: it is not calibrated"):
            roll(tiny_models("gpt2"), monkeypatch)


@pytest.mark.parametrize("patch", ["eos_pooling", "provenance", "rollout"])
def test_what_it_builds_upon_has_to_be_on(upstream, patch):
    with pytest.raises(ConfigError, match=f"reward_scaling builds upon {patch}, which is off"):
        coati_ext.enable({"reward_scaling": CALIBRATED, patch: {"enabled": False}})


def test_a_mode_that_there_is_not_is_refused_with_the_nearest(upstream):
    with pytest.raises(ConfigError, match="did you mean running"):
        coati_ext.enable({"reward_scaling": {"enabled": True, "mode": "runing"}})
    with pytest.raises(ConfigError, match="at least 0"):
        coati_ext.enable({"reward_scaling": {"enabled": True, "center": -1}})


@pytest.mark.parametrize("mean", [-0.1, 1e-300, 2.0 / 3, 123456789.123456789])
def test_a_scale_is_read_as_it_was_written(mean):
    scale = Scale(mean, 1 / 3, 2**40, "abc")
    assert Scale.from_dict(scale.as_dict(), "rm.pt") == scale


@pytest.mark.parametrize(
    "scale",
    [
        None,
        3.0,
        {"mean": "0", "spread": "1", "count": "3"},
        {"mean": "0", "spread": "0", "count": "3", "source": "x"},
        {"mean": "inf", "spread": "1", "count": "3", "source": "x"},
        {"mean": "0", "spread": "nan", "count": "3", "source": "x"},
        {"mean": "0", "spread": 1.0, "count": "3", "source": "x"},
        {"mean": "0", "spread": "1", "count": "three", "source": "x"},
        {"mean": "0", "spread": "1", "count": "3", "source": 1},
    ],
)
def test_a_scale_that_is_none_is_a_corrupt_stamp(scale):
    content = {**stamp.Stamp(*"abcd", None, *"efgh").as_dict(), "scale": scale}
    with pytest.raises(StampError, match=r"corrupt in rm\.pt: expected a scale of mean, spread"):
        stamp.Stamp.from_dict(content, "rm.pt")


# --- running -----------------------------------------------------------------------------------


def rolled(models, monkeypatch, heard, *answers):
    """The scores of some rollouts, one after another."""
    found = []
    for item in answers:
        heard.clear()
        roll(models, monkeypatch, item)
        found.append(next(seen[1] for seen in heard if seen[0] != "scored").score)
    return found


def test_running_scores_are_scaled_by_all_rollouts_so_far(upstream, monkeypatch):
    raws = [raw_scores(monkeypatch, answers) for answers in (ANSWERS, OTHERS)]
    with scaling(RUNNING) as heard:
        models = tiny_models("gpt2")
        before = rewards_of(models.reward_model)
        for number, (answers, raw) in enumerate(zip((ANSWERS, OTHERS), raws), start=1):
            (score,) = rolled(models, monkeypatch, heard, answers)
            seen = torch.cat(raws[:number]).double().numpy()
            assert close(score, ((raw.double() - seen.mean()) / seen.std()).float())
            # and outside rollouts, until the next one
            expected = (before.double() - seen.mean()) / seen.std()
            assert close(rewards_of(models.reward_model), expected.float())
    assert numpy.concatenate(raws).std() > 0.1


def test_running_scores_are_clipped_after_they_are_scaled(upstream, monkeypatch):
    with scaling(RUNNING, rollout={"score_clip": 0.5}) as heard:
        roll(tiny_models("gpt2"), monkeypatch)
        _, rollout, judgement = next(item for item in heard if item[0] != "scored")
    assert rollout.score.abs().max() > 0.5
    assert close(judgement.rewards.sum(dim=1), rollout.score.clamp(-0.5, 0.5))


def test_before_a_rollout_nothing_is_scaled(upstream):
    with coati_ext.applied():
        raw = rewards_of(tiny_reward_model("gpt2"))
    with scaling(RUNNING):
        assert rewards_of(tiny_reward_model("gpt2")).equal(raw)


def test_a_run_goes_on_with_the_moments_in_its_critics_checkpoint(upstream, monkeypatch, tmp_path):
    """The critic has learnt in their unit, and it is what upstream's scripts save and load."""
    path = str(tmp_path / "critic.pt")

    def learn(models):
        sum(item.sum() for item in models.critic.parameters()).backward()

    with scaling(RUNNING) as heard:
        models = tiny_models("gpt2")
        *_, expected = rolled(models, monkeypatch, heard, ANSWERS, OTHERS, ANSWERS[::-1])
        models = tiny_models("gpt2")
        rolled(models, monkeypatch, heard, ANSWERS, OTHERS)
        learn(models)
        weights = models.critic.state_dict()
        torch.save(weights, path)
        written = weights._metadata[""]["coati_ext"]
        assert written["kind"] == "critic"
        assert written["scale"]["count"] == "8"
        assert written["scale"]["source"] == "rollouts"

        resumed = tiny_models("gpt2")
        resumed.critic.load_state_dict(torch.load(path))
        (score,) = rolled(resumed, monkeypatch, heard, ANSWERS[::-1])
        fresh = tiny_models("gpt2")
        (other,) = rolled(fresh, monkeypatch, heard, ANSWERS[::-1])
        # And again, though no step has been made since: of the rollout before it too.
        torch.save(resumed.critic.state_dict(), path)
        assert torch.load(path)._metadata[""]["coati_ext"]["scale"]["count"] == "12"
    assert torch.allclose(score, expected, rtol=1e-6, atol=1e-6)
    assert not close(other, expected)


def test_a_critic_of_a_calibrated_reward_model_begins_with_no_moments(upstream, monkeypatch):
    with scaling(RUNNING) as heard:
        models = tiny_models("gpt2")
        (expected,) = rolled(models, monkeypatch, heard, ANSWERS)
        models = tiny_models("gpt2")
        models.critic.load_state_dict(calibrated(models.reward_model).state_dict())
        (score,) = rolled(models, monkeypatch, heard, ANSWERS)
    assert score.equal(expected)


def test_state_dicts_have_the_keys_that_they_had(upstream, monkeypatch):
    keys = [list(model.state_dict()) for model in tiny_models("gpt2")]
    with scaling(RUNNING) as heard:
        models = tiny_models("gpt2")
        rolled(models, monkeypatch, heard, ANSWERS)
        assert [list(model.state_dict()) for model in models] == keys


def rank_of_two(rank, folder):
    """Two rollouts on one rank, of every other answer: scores and moments."""
    found = []
    with pytest.MonkeyPatch.context() as monkeypatch, scaling(RUNNING) as heard:
        models = tiny_models("gpt2")
        for answers in (ANSWERS, OTHERS):
            heard.clear()
            roll(models, monkeypatch, answers, slice(rank, None, 2))
            found.append(next(seen[1] for seen in heard if seen[0] != "scored").score.tolist())
        return [found, vars(models.critic)[stamp.MOMENTS].tolist()]


def test_two_ranks_have_the_moments_of_one_process(upstream, monkeypatch, tmp_path):
    with scaling(RUNNING) as heard:
        models = tiny_models("gpt2")
        alone = rolled(models, monkeypatch, heard, ANSWERS, OTHERS)
        moments = vars(models.critic)[stamp.MOMENTS].tolist()
    (first, one), (second, other) = on_two_ranks(rank_of_two, tmp_path, str(tmp_path))
    assert one == other
    assert one == pytest.approx(moments, rel=1e-6)
    for number, scores in enumerate(alone):
        both = torch.zeros(4)
        both[::2], both[1::2] = torch.tensor(first[number]), torch.tensor(second[number])
        assert close(both, scores)


# --- wrappers ----------------------------------------------------------------------------------


def scaled_under_strategies(rank, folder, wrappings):
    """For each strategy: how far a loaded, calibrated reward model is from (raw - mean)/spread."""
    import torch.distributed as dist

    result = {}
    with cpu_only(), cpu_plugins():
        for name, precision in wrappings:
            case = Case(name, precision, "gpt2", "reward model")
            path = str(Path(folder) / f"{name}.bin")
            with coati_ext.applied():
                saved = boost(case, bare_model("gpt2", "reward model", "", torch.device("cpu")))
                saved.model.eval()
                raw = rewards_of(saved.model).float()
                saved.booster.save_model(saved.model, path)
                dist.barrier()
                if rank == 0:
                    mark, _ = stamp.read(Path(path))
                    stamp.write(Path(path), dataclasses.replace(mark, scale=SCALE))
                dist.barrier()
            with coati_ext.applied({"reward_scaling": CALIBRATED}):
                other = boost(case, tiny_reward_model("gpt2", seed=7))
                other.booster.load_model(other.model, path)
                other.model.eval()
                found = rewards_of(other.model).float()
                expected = (raw + 0.75) / 0.125
                result[name] = float(((found - expected) / expected.abs().clamp(min=1)).abs().max())
                dist.barrier()
    return result


@pytest.mark.slow
@with_colossalai
def test_the_scale_follows_the_model_under_every_strategy(newest, tmp_path):
    wrappings = runnable(
        [("ddp", "fp32"), ("gemini", "bf16"), ("zero1", "fp32"), ("zero2", "fp32")]
    )
    first, second = on_two_ranks(scaled_under_strategies, tmp_path, str(tmp_path), wrappings)
    assert first == second
    assert list(first) == [name for name, _ in wrappings]
    for name, precision in wrappings:
        assert first[name] < (1e-5 if precision == "fp32" else 2e-2), name


# --- centring ----------------------------------------------------------------------------------


def trained(settings):
    """A reward model, and how far from 0 the pairs of the last steps of its training were."""
    tokenizer = tiny_tokenizer()
    model = tiny_reward_model("gpt2", vocab_size=len(tokenizer))
    torch.nn.init.constant_(model.value_head.bias, 2.0)
    with scaling(settings) as heard:
        pairs = preference_pairs(64)
        train_reward_model(
            model, pairs, tokenizer=tokenizer, batch_size=8, max_length=64, epochs=3, lr=1e-2
        )
        steps = [item[1] for item in heard if item[0] == "step"]
    return model, float(numpy.abs(numpy.mean(steps[-4:])))


def test_the_centring_term_draws_the_rewards_to_zero(upstream):
    """And without one nothing changes, by no bit."""
    off, zero, half = ({}, {"enabled": True}, {"enabled": True, "center": 0.5})
    (free, level), (same, _), (_, centred) = map(trained, (off, zero, half))
    assert all(one.equal(other) for one, other in zip(free.parameters(), same.parameters()))
    assert level > 0.3
    assert centred < level / 2


def test_the_loss_of_a_step_has_the_term_added(upstream, monkeypatch):
    from coati.models import LogSigLoss
    from coati.trainer import RewardModelTrainer

    from coati_ext.patches.reward_scaling.reward_trainer import with_centring

    trainer = RewardModelTrainer.__new__(RewardModelTrainer)
    trainer.loss_fn = LogSigLoss()
    chosen, rejected = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 1.0])
    with coati_ext.applied({"reward_scaling": {"enabled": True, "center": 0.25}}):
        plain = trainer.loss_fn(chosen, rejected)
        found = with_centring(lambda self: self.loss_fn(chosen, rejected), trainer)
        assert trainer.loss_fn(chosen, rejected).equal(plain)  # as it was
    assert found.item() == pytest.approx(plain.item() + 0.25 * (1.5**2 + 1) / 2)


@pytest.mark.skipif(torch.__version__ < "2", reason="torch.compile came with torch 2")
@pytest.mark.parametrize("settings", [CALIBRATED, RUNNING], ids=["reference", "running"])
def test_a_compiled_reward_model_is_scaled_without_a_graph_break(newest, monkeypatch, settings):
    with coati_ext.applied():
        raw = rewards_of(tiny_models("llama").reward_model)
    with scaling(settings):
        models = tiny_models("llama")
        model = calibrated(models.reward_model)
        roll(models, monkeypatch)
        expected = rewards_of(model)
        assert not close(expected, raw)
        assert close(rewards_of(torch.compile(model, fullgraph=True, backend="eager")), expected)
