"""PPO's first training step sees what the rollout saw; every step trains the models as they were.

Upstream's own trainers take the steps; what reaches their losses is recorded.
"""

from __future__ import annotations

import copy
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import coati_ext
from coati_ext.testing import (
    cpu_only,
    experience_maker,
    make_experience,
    tiny_critic,
    tiny_models,
    tiny_reward_model,
    tiny_tokenizer,
    training_step,
)
from helpers.ppo_steps import (
    ANSWERS,
    LENGTH,
    PROMPTS,
    advantage_for,
    experience_of,
    largest_change,
    prompts,
    scripted,
    take_step,
    through_the_buffer,
    tokenizer_for,
    trainer_of,
)

ATOL = 1e-6  # float32: the same numbers, computed twice


@pytest.fixture
def cpu(upstream):
    torch.manual_seed(0)
    with cpu_only():
        yield upstream


@pytest.fixture
def on(cpu):
    with coati_ext.applied():
        yield cpu


@pytest.fixture(params=["pad", "eos"])
def tokenizer(request):
    return tiny_tokenizer(pad=request.param, padding_side="left")


class TestTheFirstStep:
    def test_has_ratio_one_and_unchanged_values(self, cpu, family):
        tokenizer = tokenizer_for(family, cpu)
        with coati_ext.applied({"rollout": {"advantage": advantage_for(family, cpu)}}):
            trainer = trainer_of(tiny_models(family), tokenizer, lr=0.0)
            experience = experience_of(trainer, tokenizer)
            assert experience.action_mask.any(dim=1).all()
            for seen in (experience, through_the_buffer(trainer, experience)):
                ratio, value = largest_change(take_step(trainer, seen), seen)
                assert ratio <= ATOL
                assert value <= ATOL

    @pytest.mark.generations("G3", "G4")
    def test_of_unpatched_upstream_trains_other_values_than_it_rolled_out(self, cpu, monkeypatch):
        """D10, D11: the critic sees another frame, and states one token later."""
        tokenizer = tiny_tokenizer(padding_side="left")

        def value_change():
            trainer = trainer_of(tiny_models("llama"), tokenizer)
            scripted(monkeypatch)
            given = {} if cpu.generation == "G3" else {"gt_answer": [None] * len(PROMPTS)}
            experience = through_the_buffer(trainer, experience_of(trainer, tokenizer, **given))
            return largest_change(take_step(trainer, experience), experience)[1]

        assert value_change() > 0.5
        with coati_ext.applied():
            assert value_change() <= ATOL

    def test_sees_the_network_that_was_rolled_out_whatever_the_dropout(self, on, family):
        tokenizer = tokenizer_for(family, on)
        models = tiny_models(family)
        for model in (models.actor, models.critic):
            configured = add_dropout(model)
        trainer = trainer_of(models, tokenizer)
        experience = experience_of(trainer, tokenizer)
        ratio, value = largest_change(take_step(trainer, experience), experience)
        assert ratio <= ATOL
        assert value <= ATOL
        assert backbone_of(models.critic).config.to_dict() == configured

    @pytest.mark.parametrize("name", ["gpt2", "opt"])
    def test_of_unpatched_upstream_drops_out_what_it_sampled_with(self, cpu, monkeypatch, name):
        """D30: in G3 and G4 a script can call ``disable_dropout``, which leaves OPT as it was."""
        tokenizer = tiny_tokenizer(padding_side="left")
        models = tiny_models(name)
        add_dropout(models.actor)
        if cpu.generation in ("G3", "G4"):
            import_module("coati.models").disable_dropout(models.actor)
        trainer = trainer_of(models, tokenizer)
        scripted(monkeypatch)
        given = {"gt_answer": [None] * len(PROMPTS)} if cpu.generation == "G4" else {}
        experience = through_the_buffer(trainer, experience_of(trainer, tokenizer, **given))
        ratio, _ = largest_change(take_step(trainer, experience), experience)
        if cpu.generation in ("G3", "G4") and name == "gpt2":
            assert ratio <= ATOL
        else:
            assert ratio > 0.05


def backbone_of(model) -> Any:
    """The transformers model in an actor or critic of any generation."""
    return model if hasattr(model, "config") else model.model


def add_dropout(model, probability=0.1):
    """Give a model what its family's configuration does with dropout; return the configuration."""
    config = backbone_of(model).config
    for name, value in config.to_dict().items():
        if "drop" in name and isinstance(value, (int, float)):
            setattr(config, name, probability)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, (int, float)):
                setattr(module, name, probability)
    return config.to_dict()


class TestBaseline:
    def first_values(self, monkeypatch, answers, **given):
        tokenizer = tiny_tokenizer(padding_side="left")
        maker = experience_maker(tiny_models("gpt2"), tokenizer=tokenizer)
        scripted(monkeypatch, answers)
        experience = make_experience(
            maker, *prompts(tokenizer), tokenizer=tokenizer, max_length=LENGTH, **given
        )
        return experience.values.view(len(PROMPTS), -1)[:, 0]

    def test_the_value_of_a_prompt_does_not_know_the_answer(self, on, monkeypatch):
        one = self.first_values(monkeypatch, ANSWERS)
        other = self.first_values(monkeypatch, [[40 + i, 50, 2] for i in range(len(PROMPTS))])
        assert one.sub(other).abs().max() <= ATOL

    @pytest.mark.generations("G1", "G2")
    def test_that_of_unpatched_upstream_does(self, cpu, monkeypatch):
        """D2, D3."""
        one = self.first_values(monkeypatch, ANSWERS)
        other = self.first_values(monkeypatch, [[40 + i, 50, 2] for i in range(len(PROMPTS))])
        assert one.sub(other).abs().min() > 1e-3

    @pytest.mark.generations("G1", "G2")
    def test_a_critic_that_starts_as_the_reward_model_still_tells_answers_apart(
        self, cpu, monkeypatch
    ):
        """D3: upstream's value is its reward, so that nothing is left to learn from."""
        tokenizer = tiny_tokenizer(padding_side="left")
        models = tiny_models("llama")._replace(
            critic=tiny_critic("llama", seed=5), reward_model=tiny_reward_model("llama", seed=5)
        )

        def advantages():
            scripted(monkeypatch)
            return make_experience(
                experience_maker(models, tokenizer=tokenizer),
                *prompts(tokenizer),
                tokenizer=tokenizer,
                max_length=LENGTH,
            ).advantages

        assert advantages().abs().max() <= ATOL
        with coati_ext.applied():
            assert advantages().abs().min() > 1e-3


@pytest.mark.generations("G1", "G2")
class TestWholeAnswersOrTokens:
    def test_gae_gives_the_losses_values_of_tokens_and_returns_for_targets(self, cpu, tokenizer):
        with coati_ext.applied({"rollout": {"advantage": "gae"}}):
            trainer = trainer_of(tiny_models("gpt2"), tokenizer)
            experience = experience_of(trainer, tokenizer)
            step = take_step(trainer, through_the_buffer(trainer, experience))
            shape, real = experience.action_mask.shape, experience.action_mask
            assert step.values.shape == step.old_values.shape == step.target.shape == shape
            assert step.advantages.shape == shape
            returns = (experience.advantages + experience.values)[real]
            assert step.target[real].sub(returns).abs().max() <= ATOL
            assert experience.reward.shape == (len(PROMPTS),)

    def test_gae_weighs_only_the_real_actions_of_the_value_loss(self, cpu, monkeypatch):
        tokenizer = tiny_tokenizer(padding_side="left")
        scripted(monkeypatch)
        with coati_ext.applied({"rollout": {"advantage": "gae"}}):
            trainer = trainer_of(tiny_models("gpt2"), tokenizer, lr=0.0)
            experience = experience_of(trainer, tokenizer)
            real = experience.action_mask
            assert not real.all()
            losses = []
            backward = trainer.strategy.backward
            trainer.strategy.backward = lambda loss, *rest, **more: (
                losses.append(float(loss.detach())),
                backward(loss, *rest, **more),
            )
            take_step(trainer, experience)
            # New values are the old ones, so that the clipped loss is that of the advantages.
            expected = 0.5 * (experience.advantages[real] ** 2).mean()
            assert losses[-1] == pytest.approx(float(expected), rel=1e-5)

    def test_whole_answers_have_one_value_and_their_reward_for_target(self, on, tokenizer):
        trainer = trainer_of(tiny_models("gpt2"), tokenizer)
        experience = experience_of(trainer, tokenizer)
        step = take_step(trainer, experience)
        assert step.values.shape == step.old_values.shape == (len(PROMPTS),)
        assert step.target.equal(experience.reward)
        gained = (experience.reward - experience.values).unsqueeze(1).expand_as(step.advantages)
        real = experience.action_mask
        assert step.advantages[real].sub(gained[real]).abs().max() <= ATOL

    @pytest.mark.generations("G1")  # G2's step returns nothing
    @pytest.mark.parametrize("advantage", ["sequence", "gae"])
    def test_the_step_reports_the_mean_reward_of_the_rows(self, cpu, advantage):
        tokenizer = tiny_tokenizer(padding_side="left")
        with coati_ext.applied({"rollout": {"advantage": advantage}}):
            trainer = trainer_of(tiny_models("gpt2"), tokenizer)
            experience = experience_of(trainer, tokenizer)
            reported = take_step(trainer, experience).returned["reward"]
            assert reported == pytest.approx(float(experience.reward.mean()), abs=1e-6)


class TestEveryStep:
    def test_changes_the_actor_and_the_critic_alone_and_keeps_them_finite(self, on, family):
        tokenizer = tokenizer_for(family, on)
        models = tiny_models(family)
        before = [copy.deepcopy(model.state_dict()) for model in models]
        trainer = trainer_of(models, tokenizer)
        experience = experience_of(trainer, tokenizer)
        held = {name: vars(experience)[name].clone() for name in vars(experience)}
        take_step(trainer, experience)
        changed = []
        for model, old in zip(models, before):
            new = model.state_dict()
            assert all(item.isfinite().all() for item in new.values())
            changed.append(any(not new[name].equal(old[name]) for name in old))
        assert changed == [True, True, False, False]
        assert all(vars(experience)[name].equal(old) for name, old in held.items())

    @pytest.mark.parametrize("fails", [False, True], ids=["", "that raises"])
    def test_leaves_no_view_on_the_trainer(self, on, fails):
        tokenizer = tiny_tokenizer(padding_side="left")
        trainer = trainer_of(tiny_models("gpt2"), tokenizer)
        experience = experience_of(trainer, tokenizer)
        names = ("actor", "critic", "actor_loss_fn", "critic_loss_fn")
        held = [vars(trainer)[name] for name in names]
        known = set(vars(trainer))
        if fails:
            trainer.critic_loss_fn.forward = broken_loss
            with pytest.raises(ArithmeticError):
                training_step(trainer, experience)
        else:
            training_step(trainer, experience)
        assert all(vars(trainer)[name] is item for name, item in zip(names, held))
        assert set(vars(trainer)) == known

    def test_weighs_actions_with_whitened_advantages_where_told_to(self, cpu, tokenizer):
        for advantage in ("sequence", "gae"):
            settings = {"advantage": advantage, "advantage_scale": "whitened"}
            with coati_ext.applied({"rollout": settings}):
                trainer = trainer_of(tiny_models("gpt2"), tokenizer)
                experience = experience_of(trainer, tokenizer)
                step = take_step(trainer, experience)
                real = experience.action_mask.bool()
                weights = step.advantages[real].double()
                assert abs(float(weights.mean())) <= 1e-6
                assert abs(float(weights.std(unbiased=False)) - 1) <= 1e-5
                assert not step.advantages[~real].any()
                assert step.target.equal(raw_target(cpu, experience))

    def test_raises_the_probability_of_what_was_better_than_expected(self, on):
        tokenizer = tiny_tokenizer(padding_side="left")
        trainer = trainer_of(tiny_models("gpt2"), tokenizer)
        experience = experience_of(trainer, tokenizer)
        experience.advantages = torch.ones_like(experience.advantages)
        for _ in range(5):
            step = take_step(trainer, experience)
        real = experience.action_mask.bool()
        gained = (step.log_probs - step.old_log_probs)[real]
        assert float(gained.mean()) > 0.05
        assert float(gained.min()) > 0

    def test_moves_the_values_towards_the_returns(self, on):
        tokenizer = tiny_tokenizer(padding_side="left")
        trainer = trainer_of(tiny_models("gpt2"), tokenizer)
        experience = experience_of(trainer, tokenizer)
        steps = [take_step(trainer, experience) for _ in range(5)]
        target = steps[0].target
        if targets_are_advantages(on):
            target = target + experience.values
        real = experience.action_mask.bool() if target.dim() == 2 else slice(None)
        first, last = (
            float((s.values - target)[real].pow(2).mean()) for s in (steps[0], steps[-1])
        )
        assert last < first


def broken_loss(*_, **__):
    raise ArithmeticError("broken")


def targets_are_advantages(upstream):
    """The value loss of G3 and G4 takes advantages, that of G1 and G2 targets."""
    return upstream.generation in ("G3", "G4")


def raw_target(upstream, experience):
    if targets_are_advantages(upstream):
        return experience.advantages
    if experience.values.dim() == 1:
        return experience.reward
    return (experience.advantages + experience.values).masked_fill(~experience.action_mask, 0)


class Endless(list):
    """A loader of one batch, over and over."""

    def next(self):
        return self[0]


def test_pretraining_batches_are_upstreams_own_call(on, tokenizer):
    """With all the weight on them, the actor learns what it learns from them without PPO."""
    models = tiny_models("gpt2")
    alone = copy.deepcopy(models.actor).train()
    trainer = trainer_of(models, tokenizer, ptx_coef=1.0)
    ids = torch.randint(3, 64, (3, 9))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    trainer.pretrain_dataloader = Endless([batch])
    training_step(trainer, experience_of(trainer, tokenizer))

    optimizer = torch.optim.Adam(alone.parameters(), lr=1e-3)
    logits = backbone_of(alone)(ids, attention_mask=batch["attention_mask"])["logits"][:, :-1]
    nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
    optimizer.step()
    for name, weight in models.actor.state_dict().items():
        # Adam's first step is the sign of the gradient, except where that is next to nothing.
        away = weight.sub(alone.state_dict()[name]).abs()
        assert (away <= 1e-4).float().mean() > 0.99, name


def test_pretraining_and_ppo_share_a_step(on):
    tokenizer = tiny_tokenizer(padding_side="left")
    trainer = trainer_of(tiny_models("gpt2"), tokenizer, ptx_coef=0.5)
    ids = torch.randint(3, 64, (3, 9))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    trainer.pretrain_dataloader = Endless([batch])
    experience = experience_of(trainer, tokenizer)
    ratio, value = largest_change(take_step(trainer, experience), experience)
    assert ratio <= ATOL
    assert value <= ATOL


def test_a_batch_without_an_action_has_a_value_loss_of_zero():
    """As where prompts leave no room on one rank, whose step must be finite all the same."""
    from coati_ext.patches.rollout.training_step import _loss_of_tokens

    experience = SimpleNamespace(values=torch.zeros(2, 1), advantages=torch.zeros(2, 1))
    frame = SimpleNamespace(action_mask=torch.zeros(2, 1, dtype=torch.bool))
    loss = _loss_of_tokens(lambda new, old, target: (new - target).pow(2).mean(), experience, frame)
    values = torch.ones(2, 1, requires_grad=True)
    found = loss(values, torch.zeros(2, 1))
    found.backward()
    assert found == 0
    assert values.grad.equal(torch.zeros(2, 1))
