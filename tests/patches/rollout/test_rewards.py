"""What PPO is rewarded for: the score once, on the last action, and a penalty that stays finite."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

import coati_ext
from helpers.reference import TOLERANCES, k3, log_probs, network, rewards_behind, score
from helpers.scenes import ANSWERS, KL_COEF, PROMPTS, needed, scene, skip_before_v031

ENDLESS = 3  # the answer that was cut off


def tokens_config(upstream, **settings):
    """Settings with which every generation has a reward for each action."""
    bandit = {"advantage": "gae"} if upstream.generation in ("G1", "G2") else {}
    return {"rollout": {**bandit, **settings}}


def rewards_of(experience, gamma=1.0, lam=0.95):
    """The rewards of each row's actions, as far as values and advantages tell them."""
    columns = zip(experience.values.double().numpy(), experience.advantages.double().numpy())
    return [
        rewards_behind(values[: len(answer)], advantages[: len(answer)], gamma, lam)
        for answer, (values, advantages) in zip(ANSWERS, columns)
    ]


def log_ratios(it, answers=ANSWERS):
    models = (it.models.actor, it.models.initial_model)
    rows = zip(PROMPTS, answers)
    return [np.subtract(*(log_probs(model, *row) for model in models)) for row in rows]


def scores(it, answers=ANSWERS):
    return [score(it.models.reward_model, [*p, *a]) for p, a in zip(PROMPTS, answers)]


def with_constant_score(it, value):
    """The reward model likes everything equally."""
    with torch.no_grad():
        it.models.reward_model.value_head.weight.zero_()
        it.models.reward_model.value_head.bias.fill_(value)
    return it


# --- where the score lands ---------------------------------------------------------------------


def test_the_score_lands_once_on_the_last_action(upstream):
    it = scene()
    with coati_ext.applied(tokens_config(upstream)):
        rewards = rewards_of(it.roll())
    for got, scored, ratio in zip(rewards, scores(it), log_ratios(it)):
        assert got.sum() == pytest.approx(scored - KL_COEF * ratio.sum(), abs=2e-4)
        assert got[:-1] == pytest.approx(-KL_COEF * ratio[:-1], abs=2e-4)


def test_without_a_penalty_the_return_is_the_score_however_long_the_answer(upstream):
    it = with_constant_score(scene(kl_coef=0.0), 1.5)
    with coati_ext.applied(tokens_config(upstream)):
        returns = [rewards.sum() for rewards in rewards_of(it.roll())]
    assert returns == pytest.approx([1.5] * len(ANSWERS), abs=2e-4)


@pytest.mark.generations("G3", "G4")
def test_unpatched_upstream_pays_the_score_for_every_token(upstream):
    it = with_constant_score(scene(kl_coef=0.0), 1.5)
    returns = [rewards.sum() for rewards in rewards_of(it.roll(**needed(upstream)))]
    lengths = [len(answer) for answer in ANSWERS]
    assert returns[2] == pytest.approx(1.5 * lengths[2], abs=2e-4)
    assert returns[4] == pytest.approx(1.5 * lengths[4], abs=2e-4)


def drawn():
    """Scores (B,), log-probabilities of policy and reference (B, A) and a mask for them."""
    draw = torch.Generator().manual_seed(0)
    policy, base = -torch.rand(2, 3, 5, generator=draw)
    mask = torch.arange(5) < torch.tensor([[5], [1], [2]])
    return torch.randn(3, generator=draw), policy, base, mask


def compute_reward(*args, **kwargs):
    from coati.models import utils

    return utils.compute_reward(*args, **kwargs)


@pytest.mark.generations("G3", "G4")
def test_every_token_is_upstreams_placement(upstream):
    scored, policy, base, mask = drawn()
    before, _ = compute_reward(scored, KL_COEF, policy, base, action_mask=mask)
    with coati_ext.applied({"rollout": {"reward_placement": "every_token"}}):
        same, _ = compute_reward(scored, KL_COEF, policy, base, action_mask=mask)
    assert same.sub(before * mask).abs().max() <= 1e-6
    with coati_ext.applied():
        terminal, _ = compute_reward(scored, KL_COEF, policy, base, action_mask=mask)
    assert terminal.sub(before * mask).abs().max() > 0.1
    expected = scored - KL_COEF * ((policy - base) * mask).sum(dim=1)
    assert terminal.sum(dim=1).sub(expected).abs().max() <= 1e-5
    last = terminal.gather(1, mask.sum(dim=1, keepdim=True) - 1).squeeze(1)
    penalty = (policy - base).gather(1, mask.sum(dim=1, keepdim=True) - 1).squeeze(1)
    assert last.sub(scored - KL_COEF * penalty).abs().max() <= 1e-5


@pytest.mark.generations("G3", "G4")
def test_every_token_reaches_the_experience(upstream):
    it = with_constant_score(scene(kl_coef=0.0), 1.5)
    with coati_ext.applied({"rollout": {"reward_placement": "every_token"}}):
        for rewards in rewards_of(it.roll()):
            assert rewards == pytest.approx(1.5, abs=2e-4)


@pytest.mark.generations("G1", "G2")
def test_the_reward_of_an_answer_is_upstreams_where_that_is_finite(upstream):
    scored, policy, base, mask = drawn()
    skip_before_v031()
    before = compute_reward(scored, KL_COEF, policy, base, action_mask=mask)
    with coati_ext.applied():
        after = compute_reward(scored, KL_COEF, policy, base, action_mask=mask)
        assert compute_reward(scored, 0.0, policy, base, action_mask=mask).equal(scored)
    assert after.sub(before).abs().max() <= 1e-5


# --- the penalty -------------------------------------------------------------------------------


@contextmanager
def less_likely(model, tokens, nats):
    """The network gives some tokens that much less logit."""

    def push(module, inputs, logits):
        lower = torch.zeros(logits.size(-1))
        lower[tokens] = nats
        return logits - lower

    hook = network(model).get_output_embeddings().register_forward_hook(push)
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.generations("G1", "G2")
@pytest.mark.parametrize("nats", [12, 89])
def test_a_policy_far_below_its_reference_gets_a_finite_reward(upstream, nats):
    it = scene()
    answers = [[20, 20, 20, 20]] * len(PROMPTS)

    def away(penalty=k3, **given):
        """How far the rewards are from the score less the mean penalty."""
        with less_likely(it.models.actor, [20], nats):
            expected = [
                scored - KL_COEF * penalty(ratio).mean()
                for scored, ratio in zip(scores(it, answers), log_ratios(it, answers))
            ]
            return it.roll(answers, **given).reward.sub(torch.tensor(expected)).abs().max()

    assert not away(**needed(upstream)) < 1000  # 16000 for 12 nats, infinite for 89
    with coati_ext.applied():
        assert away() <= TOLERANCES["reward"]
    with coati_ext.applied({"rollout": {"kl": "k1"}}):
        assert away(lambda ratio: ratio) <= TOLERANCES["reward"]


@pytest.mark.generations("G3", "G4")
def test_the_logged_kl_is_never_negative(upstream):
    ratio = torch.tensor([[1.0, -1.0, -2.0, 4.0, -29.0, 19.0]])
    given = (torch.zeros(1), KL_COEF, ratio, torch.zeros_like(ratio))
    mask = torch.ones_like(ratio, dtype=torch.bool)
    _, before = compute_reward(*given, action_mask=mask)
    assert before.min() < -10
    with coati_ext.applied():
        _, logged = compute_reward(*given, action_mask=mask)
    assert logged[0].tolist() == pytest.approx(k3(ratio[0].numpy()), rel=1e-6)
    assert logged.min() >= 0


@pytest.mark.generations("G3", "G4")
def test_k3_may_be_the_penalty(upstream):
    it = scene()
    with coati_ext.applied({"rollout": {"kl": "k3"}}):
        rewards = rewards_of(it.roll())
    for got, scored, ratio in zip(rewards, scores(it), log_ratios(it)):
        assert got.sum() == pytest.approx(scored - KL_COEF * k3(ratio).sum(), abs=2e-4)


# --- the score ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("clip", "seen"), [(None, 5.0), (0.0, 7.0), (1.0, 1.0)])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_score_is_held_to_what_the_configuration_says(upstream, clip, seen, sign):
    """By default to 5 in G3 and G4, as upstream has it, and to nothing in G1 and G2."""
    bandit = upstream.generation in ("G1", "G2")
    seen = 7.0 if bandit and clip is None else seen
    it = with_constant_score(scene(kl_coef=0.0), sign * 7.0)
    settings = {} if clip is None else {"score_clip": clip}
    with coati_ext.applied(tokens_config(upstream, **settings)):
        experience = it.roll()
    returns = [rewards.sum() for rewards in rewards_of(experience)]
    assert returns == pytest.approx([sign * seen] * len(ANSWERS), abs=2e-4)
    logged = sign * (seen if bandit else 7.0)  # G3 and G4 log the score as it came
    assert experience.reward.tolist() == pytest.approx([logged] * len(ANSWERS), abs=2e-5)


def test_an_answer_that_was_cut_off_may_cost(upstream):
    it = with_constant_score(scene(kl_coef=0.0), 1.0)
    with coati_ext.applied(tokens_config(upstream, missing_eos_penalty=2.5)):
        returns = [rewards.sum() for rewards in rewards_of(it.roll())]
    expected = [1.0] * len(ANSWERS)
    expected[ENDLESS] -= 2.5
    assert returns == pytest.approx(expected, abs=2e-4)


@pytest.mark.generations("G1", "G2")
def test_both_reach_an_answer_that_is_one_action(upstream):
    it = with_constant_score(scene(kl_coef=0.0), 7.0)
    with coati_ext.applied({"rollout": {"missing_eos_penalty": 2.5, "score_clip": 3.0}}):
        reward = it.roll().reward
    expected = torch.full((len(ANSWERS),), 3.0)
    expected[ENDLESS] -= 2.5
    assert reward.sub(expected).abs().max() <= TOLERANCES["reward"]


@pytest.mark.generations("G3", "G4")
def test_a_score_counts_up_to_upstreams_bound_unless_another_is_given(upstream):
    _, policy, base, mask = drawn()

    def rewards(value, **given):
        scored = torch.full((3,), value)
        return compute_reward(scored, 0.0, policy, base, action_mask=mask, **given)[0]

    with coati_ext.applied():
        assert rewards(7.0).equal(rewards(5.0))
        assert not rewards(4.5).equal(rewards(5.0))
        assert rewards(-7.0).equal(rewards(-5.0))
        assert rewards(7.0, reward_eps=6.0).sum(dim=1).tolist() == [6.0, 6.0, 6.0]


@pytest.mark.generations("G1", "G2")
@pytest.mark.parametrize("kl_coef", [0.0, -0.5])
def test_without_a_coefficient_the_reward_of_an_answer_is_its_score(upstream, kl_coef):
    """As upstream has it: for a negative one too, and for rows without an action."""
    scored, policy, base, mask = drawn()
    skip_before_v031()
    mask[1] = False
    for config in ({}, {"rollout": {"enabled": False}}):
        with coati_ext.applied(config):
            assert compute_reward(scored, kl_coef, policy, base, action_mask=mask).equal(scored)


ESTIMATOR = """
from coati_ext import hookimpl

@hookimpl
def estimate_advantages(rewards):
    return rewards
"""


@pytest.mark.parametrize("name", ["alpha", "sequences", "vtrace"])
def test_an_estimator_of_any_name_gets_the_penalty_of_each_action(upstream, name):
    """Only `sequence` itself has an answer for one action."""
    it = scene()
    Path(f"{name}.py").write_text(ESTIMATOR)
    with coati_ext.applied({"plugins": [f"./{name}.py"]}):
        assert coati_ext.options("rollout").advantage == name
        rewards = it.roll().advantages
    for row, ratio in zip(rewards, log_ratios(it)):
        assert row[: len(ratio) - 1].tolist() == pytest.approx(-KL_COEF * ratio[:-1], abs=2e-4)
