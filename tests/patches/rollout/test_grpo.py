"""GRPO and verifiable rewards, which only G4 has, in the one frame.

Rows are compared with themselves alone and unpadded (``reference``); where what the sampler says
matters, it is scripted, and upstream's own trainer takes the steps.
"""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from importlib import import_module
from typing import Any, Dict, List, Tuple

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import coati_ext
from coati_ext.testing import (
    LocalBooster,
    LocalCoordinator,
    LocalModel,
    cpu_only,
    experience_maker,
    families,
    layouts,
    make_experience,
    ppo_trainer,
    tiny_models,
    tiny_tokenizer,
)
from coati_ext.testing.padding import pad_rows
from helpers.reference import TOLERANCES, k3, log_probs, score

pytestmark = pytest.mark.generations("G4")

KL_COEF = 0.1
GROUP = 4
LENGTH = 24  # of prompt and answer together
WIDTH = 16  # of the padded prompts, which leaves room for 8 tokens
ROOM = LENGTH - WIDTH
PROMPTS = [[1, 9, 8, 7], [1, 5], [1, 14, 6, 33, 21, 40, 17, 30]]
# Two to each prompt, ended by the end token, by the stop sequence 50 51, or cut off.
ANSWERS = [
    [20, 21, 22, 2],
    [23, 24, 25, 50, 51],
    [2],
    [26, 27, 28, 29, 31, 32, 2],
    [34, 35, 36, 37, 38, 39, 41, 42],
    [43, 50, 50, 51],
]
STOPS = [[2], [50, 51]]


@pytest.fixture
def cpu(upstream):
    with cpu_only():
        yield upstream


@pytest.fixture
def on(cpu):
    with coati_ext.applied():
        yield cpu


@pytest.fixture(params=["pad", "eos"], ids=["pad", "pad == eos"])
def tokenizer(request):
    return tiny_tokenizer(pad=request.param, padding_side="left")


@pytest.fixture
def plain():
    return tiny_tokenizer(padding_side="left")


def apart(family="gpt2"):
    """The four models, the policy some way from its reference."""
    models = tiny_models(family)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(5)
        for parameter in models.initial_model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return models


def grpo_maker(models, tokenizer, **options):
    given = {"use_grpo": True, "num_generation": GROUP, "kl_coef": KL_COEF, **options}
    return experience_maker(models._replace(critic=None), tokenizer=tokenizer, **given)


def prompts(tokenizer, rows=PROMPTS, width=WIDTH):
    return pad_rows(rows, pad_token_id=tokenizer.pad_token_id, side="left", width=width)


def experience_of(maker, tokenizer, rows=PROMPTS, **given):
    batch = prompts(tokenizer, rows)
    defaults = {"max_length": LENGTH, "gt_answer": [None] * len(rows), "use_cache": True}
    return make_experience(maker, *batch, tokenizer=tokenizer, **{**defaults, **given})


def scripted(monkeypatch, answers, pad=0) -> List[int]:
    """Let upstream's sampler say these in turn; gives the rows of each of its calls."""
    calls: List[int] = []
    stream = itertools.cycle(answers)

    def generate(model, input_ids, *_, **__):
        calls.append(len(input_ids))
        said = [next(stream) for _ in input_ids]
        columns, _ = pad_rows(said, pad_token_id=pad, side="right")
        return torch.cat([input_ids, columns], dim=1)

    monkeypatch.setattr(import_module("coati.experience_maker.naive"), "generate", generate)
    return calls


def rows_in(experience) -> List[Tuple[List[int], List[int]]]:
    """The prompt and the answer of each row, as its masks have them."""
    actions = experience.action_mask
    start = experience.sequences.size(1) - actions.size(1)
    found = []
    for row, real, chosen in zip(experience.sequences, experience.attention_mask.bool(), actions):
        assert real[start:].equal(chosen)
        found.append((row[:start][real[:start]].tolist(), row[start:][chosen].tolist()))
    return found


def verifiable(*functions, **options):
    return import_module("coati.models").RLVRRewardModel(list(functions), **options)


def constant(input_ids, attention_mask, **_):
    return torch.tensor(1.0)


def source_of_the_maker(upstream) -> str:
    return (upstream.package / "experience_maker" / "naive.py").read_text(encoding="utf-8")


def assert_same(first, second, but=()):
    """Equal masks and tokens, and numbers of float32 models that computed other batches."""
    for name in vars(first).keys() - {*but}:
        one, other = getattr(first, name), getattr(second, name)
        assert one.shape == other.shape, name
        assert one.double().sub(other.double()).abs().max() <= 1e-5, name


class TestExperience:
    @pytest.mark.parametrize("family", families())
    def test_is_that_of_each_row_alone(self, on, family, tokenizer):
        models = apart(family)
        maker = grpo_maker(models, tokenizer)
        for name, *batch in layouts(PROMPTS, pad_token_id=tokenizer.pad_token_id, width=WIDTH):
            torch.manual_seed(0)
            made = make_experience(
                maker, *batch, tokenizer=tokenizer, max_length=LENGTH, gt_answer=[None] * 3
            )
            rows = rows_in(made)
            assert [prompt for prompt, _ in rows] == [
                prompt for prompt in PROMPTS for _ in range(GROUP)
            ], name
            scores, penalties, monitored = [], [], []
            for i, (prompt, answer) in enumerate(rows):
                assert 2 not in answer[:-1], name
                assert answer[-1] == 2 or len(answer) == len(made.action_mask[i])
                ratio = log_probs(models.actor, prompt, answer)
                got = made.action_log_probs[i].double().numpy()
                assert abs(got[: len(answer)] - ratio).max() <= TOLERANCES["action_log_probs"]
                assert not got[len(answer) :].any()
                ratio = ratio - log_probs(models.initial_model, prompt, answer)
                scores.append(score(models.reward_model, prompt + answer))
                penalties.append(KL_COEF * ratio.mean())
                monitored.append(k3(ratio).mean())
            rewards = np.array(scores) - np.array(penalties)
            expected = {
                "reward": rewards,
                "values": rewards,
                "kl": np.array(monitored),
                "advantages": group_advantages(scores, penalties),
            }
            for field, wanted in expected.items():
                wrong = abs(getattr(made, field).double().numpy() - wanted).max()
                assert wrong <= TOLERANCES[field], (name, field)

    def test_has_answers_that_differ_within_a_group(self, on, plain):
        rows = rows_in(experience_of(grpo_maker(apart(), plain), plain))
        for start in range(0, len(rows), GROUP):
            assert len({tuple(answer) for _, answer in rows[start : start + GROUP]}) > 1

    def test_can_be_trained_on_and_is_on_the_cpu(self, on, plain):
        made = experience_of(grpo_maker(apart(), plain), plain)
        for name, item in vars(made).items():
            assert item.device.type == "cpu", name
            assert not item.is_inference(), name
            assert not item.requires_grad, name

    def test_ends_in_a_pad_column_where_every_answer_ended_early(self, on, plain, monkeypatch):
        """Which is how the trainer tells ended answers from answers that were cut off."""
        for answers, spare in ((ANSWERS[:4], 1), (ANSWERS, 0)):
            scripted(monkeypatch, answers)
            maker = grpo_maker(apart(), plain, num_generation=2)
            made = experience_of(maker, plain, PROMPTS[: len(answers) // 2], stop_token_ids=STOPS)
            longest = max(len(answer) for _, answer in rows_in(made))
            assert made.action_mask.size(1) == longest + spare
            assert made.sequences.size(1) <= LENGTH


def group_advantages(scores, penalties) -> np.ndarray:
    """Scores standardised in each group, and penalties on their own scale compared in it."""
    result = []
    for start in range(0, len(scores), GROUP):
        here, cost = (np.array(item[start : start + GROUP]) for item in (scores, penalties))
        standard = (here - here.mean()) / (here.std(ddof=1) + 1e-4)
        result.extend(standard - (cost - cost.mean()))
    return np.array(result)


class TestScoresThatAreAllEqual:
    """Say nothing about which answer is better, so only the KL penalty does, on its own scale."""

    def made(self, models, tokenizer, **given):
        models = models._replace(reward_model=verifiable(constant))
        maker = grpo_maker(models, tokenizer, logits_forward_batch_size=2)
        return experience_of(maker, tokenizer, **given), models

    def penalty(self, made, models, estimate=lambda log_ratio: log_ratio):
        cost = [
            estimate(log_probs(models.actor, *row) - log_probs(models.initial_model, *row)).mean()
            for row in rows_in(made)
        ]
        centred = np.array(cost).reshape(-1, GROUP)
        return KL_COEF * (centred - centred.mean(axis=1, keepdims=True)).ravel()

    def test_leave_the_penalty_as_large_as_it_is(self, on, plain):
        made, models = self.made(apart(), plain)
        cost = self.penalty(made, models)
        assert abs(made.advantages.double().numpy() + cost).max() <= TOLERANCES["advantages"]
        assert made.advantages.abs().max() <= KL_COEF

    def test_leave_it_so_with_the_other_estimate(self, cpu, plain):
        with coati_ext.applied({"rollout": {"kl": "k3"}}):
            made, models = self.made(apart(), plain)
        cost = self.penalty(made, models, estimate=k3)
        assert abs(made.advantages.double().numpy() + cost).max() <= TOLERANCES["advantages"]

    def test_are_apart_where_answers_that_were_cut_off_cost_something(
        self, cpu, plain, monkeypatch
    ):
        scripted(monkeypatch, [ANSWERS[0], ANSWERS[4]])
        with coati_ext.applied({"rollout": {"missing_eos_penalty": 3.0}}):
            made, _ = self.made(tiny_models(), plain)
        assert made.reward.equal(torch.tensor([1.0, -2.0]).repeat(6))
        assert made.advantages.sub(torch.tensor([0.866, -0.866]).repeat(6)).abs().max() < 1e-3

    def test_unpatched_blow_its_noise_up_to_the_size_of_a_signal(self, cpu, plain):
        made, _ = self.made(apart(), plain, cache_position=torch.arange(WIDTH))
        assert made.advantages.abs().max() > 1

    def test_and_a_policy_at_its_reference_teach_nothing(self, on, plain):
        made, _ = self.made(tiny_models(), plain)
        assert made.advantages.abs().max() <= 1e-6


@pytest.mark.parametrize("grpo", [True, False], ids=["GRPO", "PPO"])
class TestVerifiableRewards:
    """What upstream's `RLVRRewardModel` hands to the functions of its user."""

    def seen(self, monkeypatch, tokenizer, grpo, *, batch=None, gt_answer=None, **given):
        """What the function saw of each row, with the answers scripted."""
        seen: List[Dict[str, Any]] = []

        def watch(input_ids, attention_mask, **row):
            seen.append({**row, "ids": input_ids, "mask": attention_mask != 0})
            return torch.tensor(float(len(seen)))

        scripted(monkeypatch, ANSWERS, pad=tokenizer.pad_token_id)
        models = apart()._replace(reward_model=verifiable(watch, word="mine"))
        if grpo:
            maker = grpo_maker(models, tokenizer, num_generation=2)
            rows = PROMPTS
        else:
            maker = experience_maker(models, tokenizer=tokenizer, kl_coef=0.0)
            rows = [prompt for prompt in PROMPTS for _ in range(2)]
        for name, value in given.items():
            setattr(maker, name, value)
        batch = prompts(tokenizer, rows) if batch is None else batch(rows)
        made = make_experience(
            maker,
            *batch,
            tokenizer=tokenizer,
            max_length=LENGTH,
            gt_answer=gt_answer and gt_answer[: len(rows)] if grpo else gt_answer,
            stop_token_ids=STOPS,
        )
        return seen, made

    @pytest.mark.parametrize("at_once", [None, 4])
    @pytest.mark.parametrize("layout", ["left", "right", "both", "interior"])
    def test_cut_out_exactly_the_answer(self, on, monkeypatch, tokenizer, grpo, layout, at_once):
        def batch(rows):
            padded = layouts(rows, pad_token_id=tokenizer.pad_token_id, width=WIDTH)
            return next((ids, mask) for name, ids, mask in padded if name == layout)

        seen, made = self.seen(
            monkeypatch, tokenizer, grpo, batch=batch, inference_batch_size=at_once
        )
        assert len(seen) == len(ANSWERS)
        for i, row in enumerate(seen):
            start, end = int(row["response_start"]), int(row["response_end"])
            assert row["ids"][row["response_start"] : row["response_end"]].tolist() == ANSWERS[i]
            assert row["mask"][start:end].all()
            assert row["ids"][:start][row["mask"][:start]].tolist() == PROMPTS[i // 2]
            assert not row["mask"][end:].any()
            assert row["word"] == "mine"
            assert (row["response_start"].item(), row["response_end"].item()) == (start, end)
        scores = torch.arange(1.0, 7.0)
        if not grpo:
            assert made.reward.equal(scores)

    def test_know_the_ground_truth_of_their_own_prompt(self, on, monkeypatch, plain, grpo):
        truth = ["a", "b", "c"] if grpo else ["a", "a", "b", "b", "c", "c"]
        seen, _ = self.seen(monkeypatch, plain, grpo, gt_answer=truth, inference_batch_size=4)
        assert [row["gt_answer"] for row in seen] == ["a", "a", "b", "b", "c", "c"]

    def test_may_do_without_ground_truth(self, on, monkeypatch, plain, grpo):
        seen, _ = self.seen(monkeypatch, plain, grpo)
        assert [row["gt_answer"] for row in seen] == [None] * 6

    def test_unpatched_may_not(self, cpu, monkeypatch, plain, grpo):
        with pytest.raises(TypeError, match="NoneType"):
            self.seen(monkeypatch, plain, grpo)

    def test_unpatched_take_pads_for_the_end_of_an_answer_that_was_cut_off(
        self, cpu, monkeypatch, plain, grpo
    ):
        truth = ["a"] * (3 if grpo else 6)

        def narrow(rows):
            return prompts(plain, rows, WIDTH - 4)

        seen, _ = self.seen(monkeypatch, plain, grpo, batch=narrow, gt_answer=truth)
        cut = seen[4]
        said = cut["ids"][cut["response_start"] : cut["response_end"]].tolist()
        assert said == ANSWERS[4] + [0] * 4


SIX = [[1, 9, 8, 7], [1, 5], [1, 14, 6, 33], [1, 41], [1, 2, 7, 2, 8], [1, 30, 31]]


@pytest.mark.parametrize("grpo", [True, False], ids=["GRPO", "PPO"])
class TestMiniBatches:
    def maker(self, tokenizer, grpo, models=None, **options):
        models = models or apart()
        if grpo:
            return grpo_maker(models, tokenizer, num_generation=2, **options)
        return experience_maker(models, tokenizer=tokenizer, kl_coef=KL_COEF, **options)

    def rows(self, grpo):
        return SIX[:3] if grpo else SIX

    @pytest.mark.parametrize("at_once", [1, 2, 3, 4, 6])
    def test_of_greedy_sampling_change_nothing(self, on, plain, grpo, at_once):
        whole, parts = (
            experience_of(
                self.maker(plain, grpo, inference_batch_size=size), plain, self.rows(grpo), top_k=1
            )
            for size in (None, at_once)
        )
        self.assert_prompts_in_order(parts, grpo)
        # Equal scores, of one answer said twice, are compared by their rounding.
        assert_same(whole, parts, but=["advantages"] if grpo else [])

    @pytest.mark.parametrize("at_once", [1, 2, 4, 6])
    def test_of_sampling_are_no_larger_than_asked(self, on, monkeypatch, tokenizer, grpo, at_once):
        calls = scripted(monkeypatch, ANSWERS, pad=tokenizer.pad_token_id)
        scored = []
        models = apart()
        models.reward_model.register_forward_hook(lambda *call: scored.append(len(call[-1])))
        whole, parts = (
            experience_of(
                self.maker(tokenizer, grpo, models, inference_batch_size=size),
                tokenizer,
                self.rows(grpo),
                stop_token_ids=STOPS,
            )
            for size in (None, at_once)
        )
        sizes = [min(at_once, 6 - start) for start in range(0, 6, at_once)]
        assert calls == scored == [6, *sizes]
        self.assert_prompts_in_order(parts, grpo)
        assert [answer for _, answer in rows_in(parts)] == ANSWERS
        assert_same(whole, parts)

    def assert_prompts_in_order(self, made, grpo):
        times = 2 if grpo else 1
        expected = [prompt for prompt in self.rows(grpo) for _ in range(times)]
        assert [prompt for prompt, _ in rows_in(made)] == expected

    @pytest.mark.parametrize("at_once", [None, 1, 2, 4])
    @pytest.mark.parametrize("all_logits", [True, False], ids=["all-logits", "of-actions"])
    def test_of_log_probabilities_change_nothing(
        self, on, monkeypatch, plain, grpo, at_once, all_logits
    ):
        """They bound the logits that are held, so they are ignored where none are."""
        models, sizes = apart(), []
        if all_logits:
            for model in (models.actor, models.initial_model):
                model.config.logit_scale = 1.0  # something is done to logits after the head
        models.actor.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
        scripted(monkeypatch, ANSWERS)
        made = [
            experience_of(
                self.maker(plain, grpo, models, logits_forward_batch_size=size),
                plain,
                self.rows(grpo),
                stop_token_ids=STOPS,
            )
            for size in (6, at_once)
        ]
        step = at_once if at_once and all_logits else 6
        assert sizes == [6] + [min(step, 6 - start) for start in range(0, 6, step)]
        assert_same(*made)

    def test_have_no_size_that_sticks(self, on, monkeypatch, plain, grpo):
        """Upstream remembers the size of the first batch for all later ones."""
        assert self.sizes(monkeypatch, plain, grpo) == ([2, 6], None)

    def test_unpatched_keep_the_size_of_the_first_batch(self, cpu, monkeypatch, plain, grpo):
        sliced_wrongly = "(inference_mini_batch_id + 1)" in source_of_the_maker(cpu)
        later = [2, 4, 2] if sliced_wrongly else [2, 2, 2]
        assert self.sizes(monkeypatch, plain, grpo) == ([2, *later], 2)

    def sizes(self, monkeypatch, tokenizer, grpo):
        calls = scripted(monkeypatch, [[20, 2]])
        maker = self.maker(tokenizer, grpo, logits_forward_batch_size=2)
        few = self.rows(grpo)[: 1 if grpo else 2]
        for rows in (few, self.rows(grpo)):
            experience_of(maker, tokenizer, rows, stop_token_ids=[[2]])
        return calls, maker.inference_batch_size

    @pytest.mark.parametrize("patched", [True, False], ids=["patched", "unpatched"])
    def test_repeat_no_prompt(self, cpu, monkeypatch, plain, grpo, patched):
        """But in unpatched v0.4.8, whose slices overlap: six prompts become eight rows."""
        repeats = not patched and "(inference_mini_batch_id + 1)" in source_of_the_maker(cpu)
        scripted(monkeypatch, [[20, 2]])
        with coati_ext.applied() if patched else nullcontext():
            maker = self.maker(plain, grpo, inference_batch_size=2, logits_forward_batch_size=2)
            made = experience_of(maker, plain, self.rows(grpo), stop_token_ids=[[2]])
        assert len(made.sequences) == (8 if repeats else 6)


def grpo_trainer(models, tokenizer, *, lr=1e-3, **options):
    """Coati's `GRPOTrainer` of these models, for the CPU, and what it meters from now on."""
    optimizer = torch.optim.Adam(models.actor.parameters(), lr=lr)
    defaults = {
        "kl_coef": KL_COEF,
        "ptx_coef": 0.0,
        "num_generation": GROUP,
        "save_dir": ".",
        "coordinator": LocalCoordinator(),
        "offload_inference_models": False,
        "dataloader_pin_memory": False,
        "buffer_cpu_offload": False,
        "max_length": LENGTH,
        "stop_token_ids": [[2]],
    }
    trainer = import_module("coati.trainer").GRPOTrainer(
        LocalBooster(),
        LocalModel(models.actor),
        models.reward_model,
        models.initial_model,
        optimizer,
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0),
        tokenizer,
        **{**defaults, **options},
    )
    trainer._before_fit([])
    metrics: Dict[str, List[float]] = {}
    add = trainer.accumulative_meter.add

    def watched(name, value, *more):
        metrics.setdefault(name, []).append(value)
        add(name, value, *more)

    trainer.accumulative_meter.add = watched
    return trainer, metrics


def losses_of(trainer) -> List[Dict[str, Any]]:
    """What each call of the trainer's policy loss gets and gives, from now on."""
    calls: List[Dict[str, Any]] = []
    forward = trainer.actor_loss_fn.forward

    def watched(log_probs, old, advantages, action_mask=None):
        loss, *more = forward(log_probs, old, advantages, action_mask=action_mask)
        ratio = (log_probs - old).masked_fill(~action_mask, 0).exp().detach()
        calls.append({"ratio": ratio, "loss": loss.item()})
        return (loss, *more)

    trainer.actor_loss_fn.forward = watched
    return calls


def through_the_buffer(trainer, *experiences):
    buffer = trainer.data_buffer
    for experience in experiences:
        buffer.append(experience)
    return buffer.collate_fn([buffer[i] for i in range(len(buffer))])


class TestTraining:
    @pytest.mark.parametrize("family", families())
    def test_starts_with_ratio_one(self, on, family, tokenizer):
        """Also without the buffer in between, and with rows of two rollouts in one batch."""
        trainer, metrics = grpo_trainer(apart(family), tokenizer, lr=0.0)
        losses = losses_of(trainer)
        maker = trainer.experience_maker
        made = [
            experience_of(maker, tokenizer, rows, **given)
            for rows, given in ((PROMPTS, {}), (PROMPTS[:2], {"max_length": WIDTH + 3}))
        ]
        assert made[0].sequences.size(1) != made[1].sequences.size(1)
        for seen in (*made, through_the_buffer(trainer, *made)):
            trainer._training_step(seen)
            assert losses[-1]["ratio"].sub(1).abs().max() <= 1e-6
            assert abs(losses[-1]["loss"] + seen.advantages.mean()) <= 1e-5
            named = {name: values[-1] for name, values in metrics.items()}
            assert named["skip_ratio"] == 0
            assert named["max_ratio"] == 1
            for name in ("reward", "kl", "advantages"):
                wanted = getattr(seen, name).mean()
                assert abs(named[name] - wanted) <= 1e-3 * (1 + abs(wanted)), name  # half precision

    @pytest.mark.parametrize("patched", [True, False], ids=["patched", "unpatched"])
    def test_of_ppo_needs_no_buffer(self, cpu, plain, patched):
        """Unpatched, the advantages are inference tensors."""
        models = apart()
        with coati_ext.applied() if patched else nullcontext():
            maker = experience_maker(models, tokenizer=plain, logits_forward_batch_size=2)
            made = experience_of(maker, plain, cache_position=torch.arange(WIDTH))
            trainer = ppo_trainer(models, tokenizer=plain, max_length=LENGTH)
            trainer.writer = None
            if patched:
                before = models.actor.lm_head.weight.clone()
                trainer._training_step(made)
                assert not models.actor.lm_head.weight.equal(before)
            else:
                with pytest.raises(RuntimeError, match="Inference tensors"):
                    trainer._training_step(made)

    def test_unpatched_trainer_makes_no_experience_with_its_own_defaults(self, cpu, plain):
        """It leaves `logits_forward_batch_size` None, which only the patched maker takes."""
        trainer, _ = grpo_trainer(apart(), plain)
        with pytest.raises(TypeError, match="NoneType"):
            experience_of(trainer.experience_maker, plain, cache_position=torch.arange(WIDTH))

    def test_moves_the_policy_towards_the_better_answers(self, on, plain):
        trainer, _ = grpo_trainer(apart(), plain)
        losses = losses_of(trainer)
        made = experience_of(trainer.experience_maker, plain)
        for _ in range(3):
            trainer._training_step(made)
        first, *_, last = (call["loss"] for call in losses)
        assert np.isfinite(last)
        assert last < first - 1e-3

    @pytest.mark.parametrize("cut_off", [False, True], ids=["all ended", "some cut off"])
    def test_meters_the_mean_length_of_ended_answers(self, on, monkeypatch, plain, cut_off):
        answers = ANSWERS if cut_off else [*ANSWERS[:4], ANSWERS[5], ANSWERS[0]]
        lengths = [len(answer) for answer in answers if len(answer) < ROOM]
        trainer, metrics = grpo_trainer(apart(), plain, num_generation=2)
        scripted(monkeypatch, answers)
        made = experience_of(trainer.experience_maker, plain, stop_token_ids=STOPS)
        trainer._training_step(made)
        assert abs(metrics["mean_token_cost"][-1] - np.mean(lengths)) <= 0.01  # half precision

    def test_meters_it_for_rows_of_rollouts_of_other_widths(self, on, monkeypatch, plain):
        """One of which has answers that were cut off, so no column is added to it."""
        trainer, metrics = grpo_trainer(apart(), plain, num_generation=2)
        made = []
        for rows, answers in (
            (PROMPTS[:1], [[20, 21, 2], [22, 2]]),
            (PROMPTS[1:], ANSWERS[2:]),
        ):
            scripted(monkeypatch, answers)
            maker = trainer.experience_maker
            made.append(experience_of(maker, plain, rows, stop_token_ids=STOPS))
        first, second = (item.sequences.shape[1] for item in made)
        assert first != second
        trainer._training_step(through_the_buffer(trainer, *made))
        assert abs(metrics["mean_token_cost"][-1] - np.mean([3, 2, 1, 7, 4])) <= 0.01

    def test_stays_finite_where_no_prompt_leaves_room_for_an_answer(self, on, plain):
        trainer, _ = grpo_trainer(apart(), plain)
        losses = losses_of(trainer)
        full = [list(range(3, 3 + LENGTH))]
        with pytest.warns(UserWarning, match="no answers are sampled"):
            made = make_experience(
                trainer.experience_maker,
                *prompts(plain, full, LENGTH),
                tokenizer=plain,
                max_length=LENGTH,
            )
        assert not made.action_mask.any()
        trainer._training_step(made)
        assert losses[-1]["loss"] == 0
        assert all(p.isfinite().all() for p in trainer.actor.parameters())

    def test_says_what_max_length_is_where_none_is_given(self, on, plain):
        trainer, _ = grpo_trainer(apart(), plain)
        with pytest.raises(ValueError, match="expected the most tokens that prompt and answer may"):
            make_experience(trainer.experience_maker, *prompts(plain, [[3]], 1), tokenizer=plain)

    def test_learns_from_pretraining_data_as_well(self, on, plain):
        models = apart()
        trainer, metrics = grpo_trainer(models, plain, ptx_coef=0.5, lr=0.0)
        ids = torch.tensor([[1, 5, 6, 7, 2]])
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
        trainer.pretrain_dataloader = import_module("coati.trainer.utils").CycledDataLoader([batch])
        losses = losses_of(trainer)
        trainer._training_step(experience_of(trainer.experience_maker, plain))
        expected = 0.5 * models.actor(**batch).loss.item()
        assert abs(metrics["ptx_loss"][0] - expected) <= 1e-2  # half precision
        assert abs(metrics["actor_loss"][0] - 0.5 * losses[0]["loss"]) <= 1e-2

    def test_fits_to_a_reward_that_can_be_verified(self, on, plain):
        """Upstream's whole loop, its collator and buffer included: answers learn to say 9."""
        trainer, metrics = fitted(plain, lr=1e-2)
        first, *_, last = metrics["reward"]
        assert trainer.num_train_step == len(metrics["reward"]) == 12
        assert np.isfinite(metrics["actor_loss"]).all()
        assert last > first + 0.2


def says_nine(input_ids, attention_mask, *, response_start, response_end, gt_answer, **_):
    said = input_ids[response_start:response_end]
    return (said == gt_answer).float().mean()


def fitted(tokenizer, **options):
    torch.manual_seed(0)
    models = tiny_models()._replace(reward_model=verifiable(says_nine))
    trainer, metrics = grpo_trainer(
        models, tokenizer, train_batch_size=8, save_interval=1000, **options
    )
    collator = import_module("coati.dataset").DataCollatorForPromptDataset(tokenizer, WIDTH)
    prompts = [{"input_ids": prompt, "gt_answer": 9} for prompt in SIX[:4]]
    loader = DataLoader(prompts, batch_size=2, collate_fn=collator)
    trainer.fit(12, 1, 1, loader)
    return trainer, metrics


def test_a_plugin_compares_groups(cpu, plain, tmp_path):
    (tmp_path / "ranks.py").write_text(
        "from coati_ext import hookimpl\n\n@hookimpl\n"
        "def compare_group(score, kl, group_size, kl_coef):\n"
        "    assert score.shape == kl.shape\n"
        "    assert (group_size, kl_coef) == (4, 0.1)\n"
        "    groups = score.view(-1, group_size)\n"
        "    return groups.argsort(dim=1).argsort(dim=1).view(-1).float()\n"
    )
    with coati_ext.applied({"plugins": ["./ranks.py"]}):
        made = experience_of(grpo_maker(tiny_models(), plain), plain)
    groups = made.advantages.view(-1, GROUP)
    assert groups.sort(dim=1).values.equal(torch.arange(4.0).expand_as(groups))
    assert groups.argmax(dim=1).equal(made.reward.view(-1, GROUP).argmax(dim=1))
