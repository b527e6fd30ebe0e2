"""The curves that are written, against the same numbers computed row by row."""

from __future__ import annotations

import contextlib

import numpy
import pytest
import torch

import coati_ext
from coati_ext.rollout import host
from coati_ext.testing import (
    cpu_only,
    make_experience,
    preference_pairs,
    tiny_models,
    tiny_reward_model,
    tiny_tokenizer,
    train_reward_model,
    training_step,
)
from helpers.ppo_steps import prompts, scripted, trainer_of
from helpers.processes import on_two_ranks

PLUGIN = """
from coati_ext import hookimpl

HEARD = []

@hookimpl
def experience_made(experience, maker, rollout, judgement):
    HEARD.append(("experience_made", experience, rollout, judgement))

@hookimpl
def policy_step(trainer, experience, log_probs):
    HEARD.append(("policy_step", trainer, log_probs))

@hookimpl
def reward_step(trainer, chosen_reward, reject_reward):
    HEARD.append(("reward_step", trainer, chosen_reward, reject_reward))

@hookimpl
def reward_evaluated(trainer, chosen_reward, reject_reward):
    HEARD.append(("reward_evaluated", trainer, chosen_reward, reject_reward))

@hookimpl
def rows_scored(model, input_ids, attention_mask, positions, reward):
    HEARD.append(("rows_scored", attention_mask, positions, reward))

@hookimpl
def tokens_computed(backbone, computed, real, columns):
    HEARD.append(("tokens_computed", computed, real, columns))
"""


# Of tiny models that end with token 2; one of them is cut off.
ANSWERS = [[20, 21, 22, 2], [23, 24, 25, 26, 27, 28, 29], [29, 2], [30, 31, 32, 33, 34, 2]]


KINDS = ("end", "stop", "content", "pad")


class Writer:
    """Keeps what a trainer would have in its log: the last value of each curve, and the steps."""

    def __init__(self):
        self.last, self.steps = {}, {}

    def add_scalar(self, name, value, step, *_, **__):
        self.last[name] = value
        self.steps.setdefault(name, []).append(step)

    @property
    def ours(self):
        stages = ("rollout/", "policy/", "tokens/", "reward_model")
        return {name: value for name, value in self.last.items() if name.startswith(stages)}


@contextlib.contextmanager
def hearing(tmp_path, **settings):
    """The patches, with what observers hear of them."""
    (tmp_path / "mine.py").write_text(PLUGIN)
    with coati_ext.applied({"plugins": ["./mine.py"], **settings}), cpu_only():
        import coati_ext_plugin_mine

        coati_ext_plugin_mine.HEARD.clear()
        yield coati_ext_plugin_mine.HEARD


@contextlib.contextmanager
def written(monkeypatch):
    """The log of the trainers that are fitted meanwhile, in generations that have one."""
    import torch.utils.tensorboard

    writer = Writer()
    with monkeypatch.context() as patch:
        patch.setattr(torch.utils.tensorboard, "SummaryWriter", lambda *_, **__: writer)
        yield writer


def heard_of(hook, heard):
    return [rest for name, *rest in heard if name == hook]


# --- PPO -----------------------------------------------------------------------------------------


def ppo(tokenizer, **options):
    trainer = trainer_of(tiny_models("gpt2"), tokenizer, lr=1e-2, **options)
    trainer.writer = Writer()
    return trainer


def sampled(trainer, tokenizer, width=12, **given):
    return make_experience(
        trainer.experience_maker,
        *prompts(tokenizer, width),
        tokenizer=tokenizer,
        **{"max_length": 24, **given},
    )


def test_the_curves_of_a_rollout_are_those_of_its_rows(upstream, tmp_path, monkeypatch):
    tokenizer = tiny_tokenizer(padding_side="left")
    with hearing(tmp_path) as heard:
        scripted(monkeypatch, ANSWERS)
        trainer = ppo(tokenizer)
        training_step(trainer, sampled(trainer, tokenizer))
        ((made, rollout, judged),) = heard_of("experience_made", heard)
    lengths = numpy.array([len(answer) for answer in ANSWERS])
    score = rollout.score.numpy()
    mask = rollout.frame.action_mask
    returns = judged.rewards.sum(dim=1).numpy()
    values, target = judged.values, judged.values + judged.advantages
    if made.values.dim() == 1:
        values, target, at = values[:, 0].numpy(), target[:, 0].numpy(), ...
    else:
        values, target, at = values.numpy(), target.numpy(), mask.numpy()
    expected = {
        "rollout/score_mean": score.mean(),
        "rollout/score_spread": score.std(),
        "rollout/length_mean": lengths.mean(),
        "rollout/score_length_correlation": numpy.corrcoef(score, lengths)[0, 1],
        "rollout/return_mean": returns.mean(),
        "rollout/return_spread": returns.std(),
        "rollout/kl": rollout.log_ratio.sum(dim=1).mean(),
        "rollout/entropy": -rollout.log_probs[mask].mean(),
        "rollout/missing_end": 0.25,
        "rollout/explained_variance": 1 - (target - values)[at].var() / target[at].var(),
        "policy/ratio_mean": 1,
        "policy/ratio_spread": 0,
        "policy/clip_share": 0,
        "policy/step_kl": 0,
    }
    if hasattr(trainer.experience_maker, "tokenizer"):  # else nobody says which token ends a row
        kinds = {"end": 0.75, "stop": 0, "content": 0.25, "pad": 0}
        expected.update({f"rollout/pooled_{kind}": share for kind, share in kinds.items()})
    found = trainer.writer.ours
    tokens = {name: found.pop(f"tokens/{name}") for name in ("padding", "computed_per_real")}
    assert found == pytest.approx({key: float(it) for key, it in expected.items()}, abs=1e-5)
    assert 0 < tokens["padding"] < 1
    assert tokens["computed_per_real"] > 0.5


@pytest.mark.generations("G3", "G4")  # no stop sequences before
def test_what_the_reward_model_has_scored_a_row_at(upstream, monkeypatch):
    tokenizer = tiny_tokenizer(padding_side="left")
    answers = [[20, 2], [21, 33], [22, 23], [24, 0]]  # an end, a stop, content and a sampled pad
    with coati_ext.applied(), cpu_only():
        scripted(monkeypatch, answers)
        trainer = ppo(tokenizer)
        training_step(trainer, sampled(trainer, tokenizer, stop_token_ids=[33]))
    found = {kind: trainer.writer.last[f"rollout/pooled_{kind}"] for kind in KINDS}
    assert found == dict.fromkeys(KINDS, 0.25)
    assert trainer.writer.last["rollout/missing_end"] == 0.5


@pytest.mark.generations("G3", "G4")
def test_rows_of_another_model_are_no_rows_of_a_rollout(upstream, monkeypatch):
    tokenizer = tiny_tokenizer(padding_side="left")
    other = tiny_reward_model("gpt2")

    class Rule(torch.nn.Module):
        def forward(self, input_ids, attention_mask=None, **_):
            return torch.ones(len(input_ids))

    with coati_ext.applied(), cpu_only():
        scripted(monkeypatch, [[20, 2], [21, 2], [22, 2], [23, 2]])
        trainer = ppo(tokenizer)
        trainer.experience_maker.reward_model = Rule()
        other(torch.ones(4, 5, dtype=torch.long), attention_mask=torch.ones(4, 5))
        training_step(trainer, sampled(trainer, tokenizer))
    assert "rollout/score_mean" in trainer.writer.last
    assert "rollout/pooled_content" not in trainer.writer.last


@pytest.mark.enough("G2", "G4", why="the maker has a tokenizer, and what is kept is the same")
@pytest.mark.generations("G2", "G3", "G4")
def test_what_a_user_scores_besides_is_not_counted(upstream):
    """On one rank, say: all ranks have to add up the same sums."""
    tokenizer = tiny_tokenizer(padding_side="left")
    found = []
    for besides in (False, True):
        with coati_ext.applied(), cpu_only():
            torch.manual_seed(0)
            trainer = ppo(tokenizer)
            if besides:
                trainer.experience_maker.reward_model(*prompts(tokenizer))
            training_step(trainer, sampled(trainer, tokenizer, top_k=1))
            found.append(trainer.writer.ours)
    assert "rollout/pooled_end" in found[0]
    for tokens in ("padding", "computed_per_real"):
        assert found[0].pop(f"tokens/{tokens}") > 0
        assert found[1].pop(f"tokens/{tokens}") > 0
    assert found[0] == pytest.approx(found[1], abs=1e-5)


def test_a_second_step_on_the_same_rows_has_moved_away(upstream):
    tokenizer = tiny_tokenizer(padding_side="left")
    with coati_ext.applied(), cpu_only():
        trainer = ppo(tokenizer)
        made = sampled(trainer, tokenizer)
        for _ in range(2):
            training_step(trainer, made)
        assert trainer.writer.steps["policy/ratio_mean"] == [1, 2]
        assert trainer.writer.steps["rollout/score_mean"] == [1]
        found = trainer.writer.last
        clip = trainer.actor_loss_fn.clip_eps
    assert found["policy/step_kl"] > 1e-4
    assert found["policy/ratio_spread"] > 1e-3
    ratios = found["policy/ratio_mean"] - 1
    assert (found["policy/clip_share"] > 0) or abs(ratios) < clip


def test_padding_moves_no_curve(upstream, monkeypatch):
    """Columns of nothing but pads reach no model, so not even the share of padding."""
    tokenizer = tiny_tokenizer(padding_side="left")
    found = []
    for width in (9, 15):
        with coati_ext.applied(), cpu_only():
            scripted(monkeypatch)
            torch.manual_seed(0)
            trainer = ppo(tokenizer)
            training_step(trainer, sampled(trainer, tokenizer, width=width))
        found.append(trainer.writer.ours)
    assert found[0] == pytest.approx(found[1], abs=1e-5)


def test_one_more_read_where_there_is_a_log_and_none_elsewhere(upstream, monkeypatch):
    reads, read = [], host.read

    def counted(numbers):
        reads.append(tuple(numbers.shape))
        return read(numbers)

    monkeypatch.setattr(host, "_shared", lambda tensor: False)
    monkeypatch.setattr(host, "read", counted)
    tokenizer, counts = tiny_tokenizer(padding_side="left"), {}
    for enabled in (True, False):
        for writer in (Writer(), None):
            with coati_ext.applied({"metrics": {"enabled": enabled}}), cpu_only():
                trainer = ppo(tokenizer)
                trainer.writer = writer
                reads.clear()
                made = sampled(trainer, tokenizer)
                rollout = len(reads)
                training_step(trainer, made)
                counts[enabled, writer is not None] = (rollout, len(reads) - rollout)
            assert bool(writer and writer.ours) == (enabled and writer is not None)
    plain = counts[False, False]
    assert counts[False, True] == counts[True, False] == plain
    assert counts[True, True] == (plain[0], plain[1] + 1)


@pytest.mark.generations("G3", "G4")  # no accumulation before
def test_an_update_of_two_steps_is_one_point_over_both(upstream):
    tokenizer = tiny_tokenizer(padding_side="left")
    with coati_ext.applied(), cpu_only():
        trainer = ppo(tokenizer, accumulation_steps=2)
        experiences = [sampled(trainer, tokenizer) for _ in range(2)]
        means = [float(made.reward.mean()) for made in experiences]
        for made in experiences:
            training_step(trainer, made)
    assert trainer.writer.steps["policy/ratio_mean"] == [1]
    assert trainer.writer.last["rollout/score_mean"] == pytest.approx(sum(means) / 2, abs=1e-5)


def test_what_is_learnt_is_the_same_without_it(upstream):
    tokenizer, learnt = tiny_tokenizer(padding_side="left"), []
    for enabled in (True, False):
        with coati_ext.applied({"metrics": {"enabled": enabled}}), cpu_only():
            torch.manual_seed(0)
            trainer = ppo(tokenizer)
            training_step(trainer, sampled(trainer, tokenizer))
            learnt.append([weight.clone() for weight in trainer.actor.parameters()])
    assert all(one.equal(other) for one, other in zip(*learnt))


# --- reward models -------------------------------------------------------------------------------

HELD_OUT = preference_pairs(10, seed=1)


def reward_model(tmp_path, rank=0, ranks=1, held_out=HELD_OUT, **given):
    tokenizer = tiny_tokenizer()
    tmp_path.mkdir(exist_ok=True)
    model = tiny_reward_model("gpt2", vocab_size=len(tokenizer))
    return train_reward_model(
        model,
        preference_pairs(4)[rank::ranks],
        tokenizer=tokenizer,
        batch_size=4 // ranks,
        max_length=128,
        held_out=held_out[rank::ranks],
        log_dir=str(tmp_path),
        **{"lr": 0.0, "shuffle": False, **given},
    )


@pytest.mark.generations("G2", "G3", "G4")  # G1 has no log
def test_the_curves_of_an_evaluation_are_those_of_its_pairs(upstream, tmp_path, monkeypatch):
    with hearing(tmp_path) as heard, written(monkeypatch) as writer:
        reward_model(tmp_path)
    ((trainer, chosen, rejected),) = heard_of("reward_evaluated", heard)
    ((same, *learnt),) = heard_of("reward_step", heard)
    assert same is trainer
    rows = heard_of("rows_scored", heard)
    rows = rows[:-4]  # those that were scored alone
    assert all((mask.gather(1, at.unsqueeze(1)) != 0).all() for mask, at, _ in rows)
    shown = sum(len(reward) for _, _, reward in rows)
    assert shown == 2 * (len(HELD_OUT) + 4)
    assert len(heard_of("tokens_computed", heard)) == len(rows) + 4
    margin = (chosen - rejected).numpy()
    scored = torch.cat([reward for _, _, reward in rows])[8:].numpy()
    lengths = torch.cat([mask.sum(dim=1) for mask, _, _ in rows])[8:].numpy()
    found = writer.last
    assert writer.steps["reward_model_eval/accuracy"] == [1]
    for stage, gap in (("reward_model_eval", margin), ("reward_model", learnt[0] - learnt[1])):
        assert found[f"{stage}/margin_mean"] == pytest.approx(float(gap.mean()), abs=1e-5)
        assert found[f"{stage}/margin_spread"] == pytest.approx(
            float(numpy.std(gap.tolist())), 1e-4
        )
        assert found[f"{stage}/accuracy"] == pytest.approx(float((gap > 0).mean(dtype=float)))
    assert found["reward_model_eval/score_mean"] == pytest.approx(scored.mean(), abs=1e-5)
    assert found["reward_model_eval/score_spread"] == pytest.approx(scored.std(), rel=1e-4)
    assert found["reward_model_eval/length_mean"] == pytest.approx(lengths.mean())
    expected = numpy.corrcoef(scored, lengths)[0, 1]
    assert found["reward_model_eval/score_length_correlation"] == pytest.approx(expected, abs=1e-4)
    assert 0 <= found["reward_model_eval/batch_shift"] < 1e-5
    if hasattr(trainer, "tokenizer"):
        assert found["reward_model_eval/pooled_end"] == 1
        assert found["reward_model_eval/pooled_pad"] == 0


@pytest.mark.generations("G2", "G3", "G4")
def test_pairs_the_other_way_round(upstream, tmp_path, monkeypatch):
    """What is right becomes wrong; how rewards go with length stays."""
    found = []
    turned = [{**it, "chosen": it["rejected"], "rejected": it["chosen"]} for it in HELD_OUT]
    for pairs in (HELD_OUT, turned):
        with coati_ext.applied(), written(monkeypatch) as writer:
            reward_model(tmp_path, held_out=pairs)
        prefix = "reward_model_eval/"
        found.append({k[len(prefix) :]: v for k, v in writer.last.items() if k.startswith(prefix)})
    one, other = found
    assert other["accuracy"] == pytest.approx(1 - one["accuracy"])
    assert other["margin_mean"] == pytest.approx(-one["margin_mean"], abs=1e-5)
    for name in ("margin_spread", "score_mean", "score_spread", "score_length_correlation"):
        assert other[name] == pytest.approx(one[name], abs=1e-5)


@pytest.mark.enough("G4", why="the pooling is the plugin's in each generation")
@pytest.mark.generations("G2", "G3", "G4")
def test_a_reward_that_depends_on_its_batch_shifts(upstream, tmp_path, monkeypatch):
    (tmp_path / "mean.py").write_text(
        "from coati_ext import hookimpl\n@hookimpl\ndef pool_reward(hidden):\n"
        "    return hidden.mean(dim=1)\n"  # over pads too, of which there are more in a batch
    )
    with coati_ext.applied({"plugins": ["./mean.py"]}), written(monkeypatch) as writer:
        reward_model(tmp_path)
    spread = writer.last["reward_model_eval/score_spread"]
    assert writer.last["reward_model_eval/batch_shift"] > 0.01 * spread


def test_that_nothing_is_written_is_told(upstream, caplog):
    tokenizer = tiny_tokenizer(padding_side="left")
    for writer in (Writer(), None):
        caplog.clear()
        with caplog.at_level("INFO", "coati_ext"), coati_ext.applied(), cpu_only():
            trainer = ppo(tokenizer)
            trainer.writer = writer
            training_step(trainer, sampled(trainer, tokenizer))
        assert ("writes no curves of PPOTrainer" in caplog.text) == (writer is None)


def test_a_folder_of_its_own_where_there_is_no_log(upstream, tmp_path, monkeypatch):
    settings = {"metrics": {"folder": str(tmp_path / "own")}}
    with coati_ext.applied(settings), written(monkeypatch) as writer:
        tokenizer = tiny_tokenizer(padding_side="left")
        with cpu_only():
            trainer = ppo(tokenizer)
            trainer.writer = None
            training_step(trainer, sampled(trainer, tokenizer))
    assert writer.steps["policy/ratio_mean"] == [1]


def on_this_rank(rank, folder, ranks=2):
    """The curves of a reward model and of a PPO step whose rows are dealt to this many ranks."""
    writer = Writer()
    with pytest.MonkeyPatch.context() as patch, cpu_only(), coati_ext.applied():
        import torch.utils.tensorboard

        patch.setattr(torch.utils.tensorboard, "SummaryWriter", lambda *_, **__: writer)
        reward_model(folder / str(rank), rank, ranks)
        tokenizer = tiny_tokenizer(padding_side="left")
        trainer = ppo(tokenizer)
        trainer.writer = writer if rank == 0 else None
        ids, mask = (rows[rank::ranks] for rows in prompts(tokenizer))
        given = {"tokenizer": tokenizer, "max_length": 24, "top_k": 1}
        training_step(trainer, make_experience(trainer.experience_maker, ids, mask, **given))
    return {name: it for name, it in writer.ours.items() if not name.startswith("tokens")}


@pytest.mark.slow
@pytest.mark.enough("G2", "G4", why="the same two functions; the first and the last with a log")
@pytest.mark.generations("G2", "G3", "G4")
def test_curves_are_over_the_rows_of_all_ranks(upstream, tmp_path):
    first, second = on_two_ranks(on_this_rank, tmp_path, tmp_path)
    assert second == {}  # only one rank has a log
    assert first == pytest.approx(on_this_rank(0, tmp_path, ranks=1), abs=1e-4)
