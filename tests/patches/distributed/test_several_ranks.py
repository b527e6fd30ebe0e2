"""Tensor, data and pipeline parallelism by ColossalAI's own plugin, on CPU processes."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch

import coati_ext
from coati_ext.testing import cpu_only, cpu_plugins, grpo_consumer, learn, sampled
from helpers.policies import PROMPTS, apart, language_model
from helpers.processes import on_ranks
from helpers.upstreams import importable

pytestmark = [
    pytest.mark.generations("G4"),
    pytest.mark.once("the plugin of the newest ColossalAI"),
    pytest.mark.slow,
]
pytest.importorskip("colossalai", reason="ColossalAI is not installed")
ONE = {"tp_size": 1, "pp_size": 1, "zero_stage": 0, "precision": "fp32"}


def work(rank, folder, on, plugin, updates, family, vocabulary, config):
    """What some updates move the weights of this rank by, by name, and their losses."""
    from colossalai.booster import Booster
    from colossalai.booster.plugin import HybridParallelPlugin

    with ready(folder, on):
        policy = language_model(family, vocab_size=vocabulary)
        data = sampled(policy, PROMPTS, width=8)
        reference = language_model(family, seed=1, vocab_size=vocabulary).eval()
        optimizer = torch.optim.SGD(policy.parameters(), lr=1.0)
        booster = Booster(plugin=HybridParallelPlugin(**plugin))
        policy, optimizer, *_ = booster.boost(policy, optimizer)
        reference, *_ = booster.boost(reference)
        size, mine = booster.plugin.dp_size, torch.distributed.get_rank(booster.plugin.dp_group)
        prompts = len(PROMPTS) // size
        consumer = grpo_consumer(
            policy, reference, optimizer, booster=booster, batch_size=prompts, **config
        )
        mine = {name: item[mine * prompts : (mine + 1) * prompts] for name, item in data.items()}
        before = weights(policy)
        losses = [learn(consumer, mine) for _ in range(updates)]
        after = weights(policy)
        return {name: (before[name] - after[name]).tolist() for name in before}, losses


@contextlib.contextmanager
def ready(folder, on):
    with contextlib.ExitStack() as stack:
        for context in (cpu_only(), cpu_plugins(), importable(Path(folder))):
            stack.enter_context(context)
        if on:
            stack.enter_context(coati_ext.applied({"rank_check": 0.0}))
        yield


def weights(model):
    return {
        name.replace("module.", ""): item.detach().clone()
        for name, item in model.named_parameters()
    }


@pytest.fixture
def train(upstream, tmp_path):
    """Run :func:`work` on some ranks."""

    def run(ranks, plugin, on=True, updates=1, family="llama", vocabulary=64, **config):
        config = {"beta": 0.1, "train_microbatch_size": 4, **config}
        given = (on, {**ONE, **plugin}, updates, family, vocabulary, config)
        return on_ranks(ranks, "gloo", work, tmp_path, str(upstream.folder), *given)

    return run


def alone(updates=1, family="llama", vocabulary=64, **config):
    """What the same updates move the weights by in this process, without ColossalAI."""
    config = {"beta": 0.1, "train_microbatch_size": 4, **config}
    with cpu_only(), coati_ext.applied():
        policy = language_model(family, vocab_size=vocabulary)
        reference = language_model(family, seed=1, vocab_size=vocabulary).eval()
        data = sampled(policy, PROMPTS, width=8)
        consumer = grpo_consumer(policy, reference, batch_size=len(PROMPTS), **config)
        before = weights(policy)
        losses = [learn(consumer, data) for _ in range(updates)]
        after = weights(policy)
    return {name: (before[name] - after[name]).tolist() for name in before}, losses


def joined(gradients):
    return torch.cat([torch.tensor(item).flatten() for item in gradients.values()])


def farthest(found, right):
    """The largest relative distance of a parameter's gradient, over the ranks that have it.

    Of tensor-parallel ranks each has a part, along the one dimension that differs.
    """
    distances = {}
    for name, whole in right.items():
        whole = torch.tensor(whole)
        parts = [torch.tensor(rank[name]) for rank in found if name in rank]
        part = parts[0]
        along = [i for i in range(part.dim()) if part.size(i) != whole.size(i)]
        if along:
            part = torch.cat(parts, dim=along[0]).narrow(along[0], 0, whole.size(along[0]))
        distances[name] = float((part - whole).norm() / whole.norm())
    return max(distances.values())


@pytest.mark.parametrize("variation", ["sample_level", "token_level"])
def test_two_data_parallel_ranks_have_the_gradient_of_one(train, variation):
    right, loss = alone(loss_variation=variation)
    for moved, losses in train(2, {}, loss_variation=variation):
        assert farthest([moved], right) < 1e-5
        assert apart(*(joined(it) for it in (moved, right))) < 1e-6
        assert losses == pytest.approx(loss, abs=1e-6)


@pytest.mark.parametrize("stage", [1, 2])
def test_zero_has_the_same_gradient_but_for_its_half_precision(train, stage):
    right, _ = alone(loss_variation="token_level")
    zero = {"zero_stage": stage, "precision": "bf16"}
    for moved, _ in train(2, zero, loss_variation="token_level"):
        # Of the whole, since small gradients are lost in the weights' own rounding.
        assert apart(*(joined(it) for it in (moved, right))) < 0.3


def test_reinforce_ppb_standardises_over_all_ranks(train):
    right, _ = alone(algo="REINFORCE_PPB")
    for moved, _ in train(2, {}, algo="REINFORCE_PPB"):
        assert farthest([moved], right) < 1e-5


@pytest.mark.parametrize(("family", "vocabulary"), [("llama", 120), ("qwen2", 120), ("llama", 128)])
def test_two_tensor_parallel_ranks_have_the_gradient_of_one(train, family, vocabulary):
    given = {"family": family, "vocabulary": vocabulary}
    right, loss = alone(**given)
    found = train(2, {"tp_size": 2}, **given)
    assert farthest([moved for moved, _ in found], right) < 1e-5
    for _, losses in found:
        assert losses == pytest.approx(loss, abs=1e-6)


def gap(rank, folder, family, vocabulary):
    """How far log-probabilities of two tensor-parallel ranks are from those of one process."""
    from colossalai.booster import Booster
    from colossalai.booster.plugin import HybridParallelPlugin

    with ready(folder, on=True):
        from coati_ext.patches.distributed import consumer as steps
        from coati_ext.patches.distributed import update

        policy = language_model(family, vocab_size=vocabulary)
        data = sampled(policy, PROMPTS, width=8)
        booster = Booster(plugin=HybridParallelPlugin(**{**ONE, "tp_size": 2}))
        optimizer = torch.optim.SGD(policy.parameters(), lr=1.0)
        policy, optimizer, *_ = booster.boost(policy, optimizer)
        consumer = grpo_consumer(policy, None, optimizer, booster=booster, batch_size=len(PROMPTS))
        rows = steps.rows_of(consumer, data)
        with torch.no_grad():
            logits = policy(**update._inputs(policy, rows)).logits
            found = update._log_probs(consumer, logits, rows)
        return float((found - rows["old_log_probs"])[rows["action_mask"]].abs().max())


@pytest.mark.parametrize(("family", "vocabulary"), [("llama", 120), ("qwen2", 120), ("llama", 128)])
def test_two_tensor_parallel_ranks_have_the_log_probs_of_one(
    upstream, tmp_path, family, vocabulary
):
    given = (str(upstream.folder), family, vocabulary)
    assert max(on_ranks(2, "gloo", gap, tmp_path, *given)) < 1e-5


def test_without_the_patch_the_last_ranks_part_of_a_vocabulary_is_misplaced(train):
    right, _ = alone(vocabulary=120)
    found = train(2, {"tp_size": 2}, on=False, vocabulary=120)
    assert farthest([moved for moved, _ in found], right) > 0.1


STAGES = {"pp_size": 2, "microbatch_size": 2, "enable_metadata_cache": False}


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_two_stages_have_the_gradient_of_one(train, family):
    given = {"family": family, "loss_variation": "token_level"}
    right, loss = alone(**given)
    found = train(2, STAGES, **given)
    assert farthest([moved for moved, _ in found], right) < 1e-5
    assert found[1][1] == pytest.approx(loss, abs=1e-6)


def save(rank):
    """What the booster of a process that has the whole model says to a state_dict."""
    from colossalai.booster import Booster
    from colossalai.booster.plugin import HybridParallelPlugin

    with cpu_only(), cpu_plugins():
        boosted = []
        for multiple in (1, 64):
            policy = language_model("llama", vocab_size=120)
            given = {**ONE, "make_vocab_size_divisible_by": multiple}
            optimizer = torch.optim.SGD(policy.parameters(), lr=1.0)
            booster = Booster(plugin=HybridParallelPlugin(**given))
            boosted.append(booster.boost(policy, optimizer)[0].unwrap())
        assert boosted[0].state_dict()["lm_head.weight"].size(0) == 120
        boosted[1].state_dict()


def test_colossalai_saves_no_padded_vocabulary_of_one_rank(tmp_path):
    """For which `launch_distributed` is refused, unless told to pad none."""
    with pytest.raises(AssertionError, match="no attribute '_unpad_detach'"):
        on_ranks(1, "gloo", save, tmp_path)


@pytest.mark.parametrize("split", [{"tp_size": 2}, STAGES])
def test_colossalai_splits_no_gpt2_that_has_no_labels(train, split):
    """For which `launch_distributed` is refused."""
    with pytest.raises(AssertionError, match="UnboundLocalError"):
        train(2, split, family="gpt2")


def test_without_the_patch_a_pipeline_with_data_parallelism_dies(train):
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        train(4, STAGES, on=False)


def test_two_stages_on_two_data_parallel_ranks_finish_two_updates(train):
    right, _ = alone(updates=2)
    found = train(4, STAGES, updates=2)
    assert farthest([moved for moved, _ in found], right) < 1e-4
    assert [len(losses) for _, losses in found] == [2] * 4
