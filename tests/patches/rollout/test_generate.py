"""`generate` of transformers gives upstream's token ids for the same random numbers."""

from __future__ import annotations

import pytest
import torch

import coati_ext
from coati_ext.patches.rollout import hf, upstream
from coati_ext.rollout.models import without_dropout
from coati_ext.testing import cpu_only, cpu_plugins, families
from coati_ext.testing.rollouts import default_generate_kwargs
from helpers.processes import on_two_ranks
from helpers.reference import network
from helpers.scenes import scene, skip_before_v031
from helpers.strategies import WRAPPINGS, Case, bare_model, boost, runnable

VOCABULARY = 8  # so small that ends and pads come up often
PROMPTS = torch.tensor([[0, 0, 0, 0, 1, 5], [0, 0, 1, 4, 6, 7], [1, 6, 3, 2, 5, 4]])
MASK = torch.tensor([[0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]]).bool()
ROOM = 12
SETTINGS = [
    {},
    {"top_k": 3, "temperature": 0.7},
    {"top_p": 0.8, "temperature": 1.5, "use_cache": False},
    {"top_k": 1, "early_stopping": True},
    {"early_stopping": False, "use_cache": True},
]
WITH_STOPS = [{"stop_token_ids": [[3], [6, 5]]}, {"stop_token_ids": [4, 4], "top_k": 5}]


@pytest.fixture
def sampling(upstream):
    """Upstream's code, which both samplers ask."""
    skip_before_v031()
    with coati_ext.applied():
        yield upstream


def sampled(sampler, it, seed, prompts=PROMPTS, mask=MASK, **given):
    """The answers (B, A), and the random number that comes next."""
    without_dropout(it.maker.actor.eval())
    torch.manual_seed(seed)
    given = {**default_generate_kwargs(it.maker.actor, it.tokenizer), **given}
    with torch.no_grad():
        sequences = sampler(it.maker, prompts, mask, ROOM, {"max_length": 99, **given})
    return sequences.tolist(), float(torch.rand(()))


def up_to_the_end(found, stops):
    """Sequences with zeros after the first stop; G3's sampler fills these columns otherwise."""
    sequences, following = found
    sequences = torch.tensor(sequences)
    actions, _ = coati_ext.choice("mark_actions")(sequences, PROMPTS.size(1), stops)
    sequences[:, PROMPTS.size(1) :].masked_fill_(~actions, 0)
    return sequences.tolist(), following


@pytest.mark.parametrize("family", families())
@pytest.mark.parametrize("pad", ["pad", "eos"])
def test_the_token_ids_are_those_of_upstreams_sampler(sampling, family, pad):
    it = scene(family, pad=pad, vocab_size=VOCABULARY)
    for seed, given in enumerate([*SETTINGS, *SETTINGS]):
        theirs = sampled(upstream, it, seed, **given)
        assert sampled(hf, it, seed, **given) == theirs, given


@pytest.mark.generations("G3", "G4")
def test_stop_sequences_end_the_same_rows(sampling):
    it = scene(pad="eos", vocab_size=VOCABULARY)
    for seed in range(4):
        for given in WITH_STOPS:
            stops = given["stop_token_ids"]
            stops = [[2], *(stops if isinstance(stops[0], list) else [stops])]
            ours, theirs = (
                up_to_the_end(sampled(each, it, seed, **given), stops) for each in (hf, upstream)
            )
            assert ours == theirs, given


def test_it_is_transformers_that_samples_and_nothing_is_left_behind(sampling, monkeypatch):
    if not hasattr(sampled_home(), "generate"):
        pytest.skip("before v0.3.2 upstream's sampler is asked")
    it = scene()
    model = network(it.maker.actor)
    own, asked = dict(vars(model)), []
    generate = type(model).generate

    def seen(self, *args, **kwargs):
        asked.append(self)
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "generate", seen)
    sampled(hf, it, 0)
    assert asked == [model]
    assert dict(vars(model)) == own
    sampled(hf, it, 0, prepare_inputs_fn=lambda ids, **given: {"input_ids": ids})
    assert asked == [model]


def sampled_home():
    from importlib import import_module

    return import_module("coati.experience_maker.naive")


def test_the_models_generation_config_is_not_read(sampling):
    it = scene(vocab_size=VOCABULARY)
    before = sampled(hf, it, 1)
    config = network(it.maker.actor).generation_config
    config.temperature, config.repetition_penalty, config.top_k = 0.1, 5.0, 2
    config.min_length, config.eos_token_id = 10, 5
    assert sampled(hf, it, 1) == before == sampled(upstream, it, 1)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_scores_are_processed_in_the_dtype_of_the_logits(sampling, family):
    it = scene(family)
    it.maker.actor.bfloat16()
    for seed in range(3):
        given = {"temperature": 0.7, "top_p": 0.7}
        assert sampled(hf, it, seed, **given) == sampled(upstream, it, seed, **given)


def on_rank(rank, wrappings):
    """For each wrapping and family: whether both samplers gave the same, and the answers."""
    found = {}
    with cpu_only(), cpu_plugins(), coati_ext.applied():
        for strategy, precision in wrappings:
            for family in ("llama",) if strategy == "tensor" else ("gpt2", "llama"):
                case = Case(strategy, precision, family, "actor")
                boosted = boost(case, bare_model(*case[2:], torch.device("cpu")))
                it = scene(family)
                it.maker.actor = boosted.model
                rows = slice(None) if strategy == "tensor" else slice(rank, rank + 2)
                rows = {"prompts": PROMPTS[rows], "mask": MASK[rows]}
                if strategy == "gemini":  # its first forward is to be one of training
                    out = boosted.model(PROMPTS, attention_mask=MASK.long())
                    boosted.booster.backward(out["logits"].float().mean(), boosted.optimizer)
                    boosted.optimizer.zero_grad()
                seed = 0 if strategy == "tensor" else rank
                both = [
                    sampled(each, it, seed, **rows, top_p=0.9, early_stopping=True)
                    for each in (hf, upstream)
                ]
                found[str(case)] = [both[0] == both[1], both[0][0]]
    return found


@pytest.mark.slow
@pytest.mark.enough("G2", "G4", why="G1 and G3 have modules and forwards as G2 and G4 have")
def test_the_token_ids_are_the_same_through_every_wrapper(upstream, tmp_path):
    if upstream.generation in ("G1", "G2"):
        skip_before_v031()
    wrappings = runnable(
        [*WRAPPINGS, *([("tensor", "fp32")] if upstream.generation == "G4" else [])]
    )
    ranks = on_two_ranks(on_rank, tmp_path, wrappings)
    assert ranks[0]
    assert not [case for found in ranks for case, (same, _) in found.items() if not same]
    for case in ranks[0]:
        one, two = (found[case][1] for found in ranks)
        assert (one == two) == case.startswith("tensor")
