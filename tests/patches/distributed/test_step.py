"""The step of both packages: what it trains, by one gradient whatever its split."""

from __future__ import annotations

import contextlib
import re

import pytest
import torch

import coati_ext
from coati_ext.errors import UnknownNameError
from coati_ext.testing import cpu_only, grpo_consumer, has_distributed, learn, sampled
from helpers import ROOT
from helpers.policies import PROMPTS, apart, flat, gradient, language_model

pytestmark = [
    pytest.mark.generations("G4"),
    pytest.mark.once("coati.distributed is of HEAD, which needs the newest stack"),
]
SPLITS = [
    {"train_microbatch_size": 4},
    {"train_microbatch_size": 1},
    {"mini": 1},
    {"mini": 2, "train_microbatch_size": 2},
]
SEEN = """
from coati_ext import hookimpl
from coati_ext.patches import distributed

seen = []


@hookimpl
def group_advantages(reward, action_mask, group_size, algorithm):
    advantages = distributed.by_algorithm(reward, action_mask, group_size, algorithm)
    seen.append({"advantages": advantages, "mask": action_mask})
    return advantages


@hookimpl
def action_losses(
    log_probs, old_log_probs, reference_log_probs, advantages, action_mask, clip, beta, algorithm
):
    gap = (log_probs - old_log_probs).masked_fill(~action_mask, 0)
    seen.append({"ratio": gap.detach().exp()})
    return distributed.clipped(
        *(log_probs, old_log_probs, reference_log_probs, advantages, action_mask),
        *(clip, beta, algorithm),
    )
"""


@pytest.fixture(autouse=True)
def _there(upstream):
    if not has_distributed():
        pytest.skip("coati.distributed, or what it imports, is not here")


@pytest.fixture
def seen(upstream, tmp_path):
    """What the two choices were given, by a plugin of two hooks in a file."""
    import importlib

    (tmp_path / "seen.py").write_text(SEEN)
    with coati_ext.applied({"plugins": ["./seen.py"]}):
        yield importlib.import_module("coati_ext_plugin_seen").seen


def ratios(seen):
    return torch.cat([item["ratio"].flatten() for item in seen if "ratio" in item])


# --- the policy that sampled is the policy that is trained ---------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
@pytest.mark.parametrize("temperature", [0.6, 0.9, 1.0, (0.6, 1.0, 0.9, 1.3)])
def test_before_the_first_update_every_ratio_is_1(seen, family, temperature):
    policy = language_model(family)
    with cpu_only():
        data = sampled(policy, PROMPTS, temperature=temperature, width=8)
        learn(grpo_consumer(policy, batch_size=4, temperature=1.0), data)
    assert (ratios(seen) - 1).abs().max() < 1e-5


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_also_where_bos_is_the_pad(seen, family):
    policy = language_model(family)
    with cpu_only():
        learn(grpo_consumer(policy, batch_size=4), sampled(policy, PROMPTS, width=8, pad=1))
    assert (ratios(seen) - 1).abs().max() < 1e-5


def test_also_where_the_policy_has_dropout(seen):
    policy = language_model("gpt2")
    with cpu_only():
        data = sampled(policy, PROMPTS)
        for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
            setattr(policy.config, name, 0.5)
        dropping = type(policy)(policy.config)
        dropping.load_state_dict(policy.state_dict())
        learn(grpo_consumer(dropping, batch_size=4), data)
    assert (ratios(seen) - 1).abs().max() < 1e-5


def test_upstream_trains_another_policy(upstream):
    policy = language_model("llama")
    with cpu_only():
        data = sampled(policy, PROMPTS, temperature=0.6)
    found, _ = gradient(data=data, temperature=0.9)
    with coati_ext.applied():
        right, _ = gradient(data=data, temperature=0.9)
    assert apart(found, right) > 0.3


@pytest.mark.parametrize("beta", [0.0, 0.01])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_at_defaults_the_weights_are_upstreams_bit_for_bit(upstream, family, beta):
    found, loss = gradient(family, beta=beta)
    with coati_ext.applied():
        ours, our_loss = gradient(family, beta=beta)
    assert ours.equal(found)
    assert our_loss == loss


# --- one gradient --------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["GRPO", "DAPO", "RLOO", "REINFORCE_PPB"])
@pytest.mark.parametrize("variation", ["sample_level", "token_level"])
def test_the_gradient_is_one_over_every_split(on, algorithm, variation):
    given = {"algo": algorithm, "loss_variation": variation, "beta": 0.1}
    right, loss = gradient(**given)
    for split in SPLITS:
        found, its_loss = gradient(**given, **split)
        assert apart(found, right) < 1e-6, split
        assert its_loss == pytest.approx(loss, abs=1e-6)


def test_upstreams_grows_with_the_number_of_microbatches(upstream):
    right, _ = gradient()
    found, _ = gradient(train_microbatch_size=1)
    assert float(found @ right / (right @ right)) == pytest.approx(16, rel=1e-3)


def test_an_update_without_dynamic_batching_ends_with_its_last_minibatch(on):
    right, _ = gradient(dynamic_batching=False)
    found, _ = gradient(dynamic_batching=False, mini=2)
    assert apart(found, right) < 1e-6


@pytest.mark.parametrize("variation", ["sample_level", "token_level"])
def test_groups_that_are_filtered_out_are_not_trained(on, variation):
    """Their rows may hold anything; the token count is of the others."""
    given = {"dynamic_batching": False, "filter_range": [0.01, 0.99], "loss_variation": variation}
    policy = language_model("llama")
    with cpu_only():
        data = sampled(policy, PROMPTS, width=8)
    data["ans_acc"][:] = torch.tensor([1.0, 0, 0, 1]).view(1, 4, 1)
    data["ans_acc"][2] = 1.0
    right, _ = gradient(data=data, **given)
    odd = {**data, "reward": data["reward"].clone()}
    odd["reward"][2] *= 7
    found, _ = gradient(data=odd, **given)
    assert apart(found, right) < 1e-6
    everything, _ = gradient(data=data, **{**given, "filter_range": None})
    assert apart(everything, right) > 1e-2


def test_the_step_of_zero_bubble_is_the_same(on):
    right, loss = gradient("gpt2")
    found, its_loss = gradient("gpt2", zero_bubble=True, mini=2)
    assert apart(found, right) < 1e-6
    assert its_loss == pytest.approx(loss, abs=1e-6)


# --- the algorithms ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 16])
def test_reinforce_ppb_standardises_over_the_whole_batch(seen, size):
    policy = language_model("llama")
    with cpu_only():
        data = sampled(policy, PROMPTS, width=8)
        config = {"algo": "REINFORCE_PPB", "train_microbatch_size": size}
        learn(grpo_consumer(policy, batch_size=4, **config), data)
    (given,) = [item for item in seen if "advantages" in item]
    real = given["advantages"][given["mask"]].double()
    assert float(real.mean()) == pytest.approx(0, abs=1e-5)
    assert float(real.std(unbiased=False)) == pytest.approx(1, abs=1e-5)
    # REINFORCE++ with a baseline: the reward less its group's mean, standardised over the batch.
    centred = (data["reward"] - data["reward"].mean(dim=1, keepdim=True)).expand(-1, -1, 6)
    actions = data["action_mask"].bool()
    values = centred[actions].double()
    expected = (values - values.mean()) / values.std(unbiased=False)
    assert real.allclose(expected, atol=1e-5)


@pytest.mark.parametrize("algorithm", ["GRPO", "DAPO", "RLOO"])
def test_advantages_are_those_of_the_papers(seen, algorithm):
    policy = language_model("llama")
    with cpu_only():
        data = sampled(policy, PROMPTS)
        learn(grpo_consumer(policy, batch_size=4, algo=algorithm), data)
    (given,) = [item for item in seen if "advantages" in item]
    reward = data["reward"].squeeze(-1)
    if algorithm == "RLOO":
        expected = reward - (reward.sum(dim=1, keepdim=True) - reward) / 3
    else:
        expected = (reward - reward.mean(1, keepdim=True)) / (reward.std(1, keepdim=True) + 1e-4)
    assert given["advantages"][:, 0].allclose(expected.flatten(), atol=1e-6)


def test_the_example_in_the_docs_is_trained_by(upstream, tmp_path):
    text = (ROOT / "docs" / "distributed.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(# dr_grpo\.py.*?)```", text, flags=re.DOTALL)
    (tmp_path / "dr_grpo.py").write_text(code)
    with coati_ext.applied():
        grpo, _ = gradient()
    with coati_ext.applied({"plugins": ["./dr_grpo.py"]}):
        found, _ = gradient()
    assert apart(found, grpo) > 0.01
    assert float(found @ grpo) > 0


def test_an_unknown_algorithm_is_named(on):
    with pytest.raises(UnknownNameError, match=r"'REINFORCE'.*did you mean REINFORCE_PPB"):
        gradient(algo="REINFORCE")


def test_a_pad_far_below_the_reference_does_not_matter(on):
    from coati_ext.patches.distributed import clipped

    log_probs = torch.tensor([[-1.0, -500.0]], requires_grad=True)
    old = torch.tensor([[-1.0, 0.0]])
    mask = torch.tensor([[True, False]])
    for algorithm in ("GRPO", "REINFORCE_PPB"):
        loss = clipped(log_probs, old, old, torch.ones(1, 2), mask, (0.2, 0.2), 0.1, algorithm)
        (found,) = torch.autograd.grad((loss * mask).sum(), log_probs)
        assert found.isfinite().all()


# --- what is logged ------------------------------------------------------------------------------


@pytest.mark.parametrize("on", [False, True])
def test_what_is_logged(upstream, on):
    """The same names as upstream's, and its numbers where there is one microbatch."""
    logged = []
    with cpu_only(), coati_ext.applied() if on else contextlib.nullcontext():
        policy = language_model("llama")
        data = sampled(policy, PROMPTS, temperature=1.0)
        consumer = grpo_consumer(policy, language_model("llama", 1).eval(), batch_size=4, beta=0.1)
        consumer.wandb_run = type("Run", (), {"log": logged.append})
        before = flat(policy)
        learn(consumer, data)
        assert not flat(policy).equal(before)
    (metrics,) = logged
    lengths = data["action_mask"].sum(-1).float()
    expected = {
        "metrics/reward": float(data["reward"].mean()),
        "metrics/response_length": float(lengths.mean()),
        "rollout/temperature": 1.0,
        "train/advantages": 0.0,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    assert 3 < metrics["train/entropy"] < 4.2
