"""Each field of an Experience is that of the row alone and unpadded, whatever pads and in what way.

The sampler is scripted here: ``test_sampling.py`` is about the real one.
"""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch

import coati_ext
from coati_ext.testing.padding import pad_rows
from helpers.host_reads import HostReads
from helpers.reference import (
    TOLERANCES,
    assert_frame,
    fields_of_rows,
    network,
    wrong_fields,
)
from helpers.scenes import ANSWERS, KL_COEF, LAYOUTS, PROMPTS, needed, scene


def truth_of(on, it, answers=ANSWERS, prompts=PROMPTS, **settings):
    settings = {"kl_coef": KL_COEF, **settings}
    return fields_of_rows(on.generation, it.models, prompts, answers, **settings)


def test_every_field_is_that_of_the_row_alone(on, family):
    it = scene(family)
    truth = truth_of(on, it)
    for pad in ("pad", "eos", "bos"):
        it = it.padded_with(pad)
        for layout in LAYOUTS:
            experience = it.roll(layout=layout)
            assert_frame(experience, PROMPTS, ANSWERS, it.tokenizer.pad_token_id)
            assert wrong_fields(experience, truth) == {}, (pad, layout)


def test_a_tokenizer_may_have_no_pad(on):
    it = scene()
    it.tokenizer.pad_token = None
    experience = it.roll(layout="interior")
    assert_frame(experience, PROMPTS, ANSWERS, 0)
    assert wrong_fields(experience, truth_of(on, it)) == {}


def test_unpatched_upstream_gets_every_field_wrong(upstream):
    """Even with prompts on the left, as upstream wants them."""
    it = scene()
    truth = truth_of(upstream, it)
    assert set(wrong_fields(it.roll(**needed(upstream)), truth)) == set(truth[0])


@pytest.mark.parametrize("pad", ["eos", "bos"])
def test_unpatched_upstream_masks_tokens_that_are_also_the_pad(upstream, pad):
    """With pad == eos the end of each answer, with pad == bos the start of each prompt."""
    it = scene(pad=pad)
    experience = it.roll(**needed(upstream))
    start = experience.sequences.size(1) - experience.action_log_probs.size(1)
    column = {"eos": start + ANSWERS[0].index(2), "bos": start - len(PROMPTS[0])}[pad]
    assert experience.sequences[0, column] == it.tokenizer.pad_token_id
    assert experience.attention_mask[0, column] == 0


def test_unpatched_upstream_masks_a_pad_that_was_sampled(upstream):
    it = scene()
    experience = it.roll(**needed(upstream))
    start = experience.sequences.size(1) - experience.action_log_probs.size(1)
    assert experience.attention_mask[0, start : start + 3].tolist() == [1, 0, 1]


@pytest.mark.generations("G1", "G2")
def test_values_of_tokens_where_the_configuration_wants_them(upstream):
    it = scene()
    settings = {"advantage": "gae", "gamma": 0.9, "lam": 0.8}
    with coati_ext.applied({"rollout": settings}):
        experience = it.roll()
        assert experience.values.shape == experience.action_mask.shape
        assert_frame(experience, PROMPTS, ANSWERS, 0)
        assert wrong_fields(experience, truth_of(upstream, it, **settings)) == {}
    with coati_ext.applied({"rollout": {"advantage": "gae"}}):
        assert wrong_fields(it.roll(), truth_of(upstream, it, advantage="gae")) == {}


@pytest.mark.generations("G1", "G2")
def test_an_answer_is_one_action_by_default(on):
    experience = scene().roll()
    assert experience.values.shape == experience.reward.shape == (len(PROMPTS),)
    assert experience.advantages.shape == (len(PROMPTS), 1)


@pytest.mark.generations("G3", "G4")
def test_discount_and_lambda_are_the_makers_unless_the_configuration_has_its_own(upstream):
    it = scene(gamma=0.9, lam=0.8)
    with coati_ext.applied():
        assert wrong_fields(it.roll(), truth_of(upstream, it, gamma=0.9, lam=0.8)) == {}
    for settings in ({"lam": 0.5}, {"gamma": 0.7}, {"gamma": 0.0, "lam": 1.0}):
        with coati_ext.applied({"rollout": settings}):
            expected = truth_of(upstream, it, **{"gamma": 0.9, "lam": 0.8, **settings})
            assert wrong_fields(it.roll(), expected) == {}, settings


def test_the_reward_model_scores_what_it_scores_in_its_training(on, family):
    """The rows of training are `bos q a eos`, padded on the right, as upstream's scripts do."""
    it = scene(family, kl_coef=0.0)
    for pad in ("pad", "eos"):
        it = it.padded_with(pad)
        assert it.roll().reward.sub(trained_score(it)).abs().max() <= TOLERANCES["reward"]


def trained_score(it):
    rows = [prompt + answer for prompt, answer in zip(PROMPTS, ANSWERS)]
    ids, mask = pad_rows(rows, pad_token_id=it.tokenizer.pad_token_id, side="right")
    with torch.no_grad():
        return it.models.reward_model(ids, attention_mask=mask)


@pytest.mark.parametrize("family", ["gpt2", "bloom", "llama"])
def test_unpatched_upstream_scores_another_form(upstream, family):
    pads = {
        "G1": ["pad", "eos"],
        "G2": ["eos"],
        "G3": ["pad"],  # with pad == eos, the pad it puts in place of the end token is one
        "G4": ["pad", "eos"],
    }
    it = scene(family, kl_coef=0.0)
    for pad in pads[upstream.generation]:
        it = it.padded_with(pad)
        away = it.roll(**needed(upstream)).reward.sub(trained_score(it)).abs()
        assert away.max() > 0.05, pad


def test_experience_can_be_trained_on_as_it_is(on):
    """No inference tensors, no graph behind them, and on the CPU where G4 wants them."""
    it = scene()
    ids, mask = pad_rows(PROMPTS, pad_token_id=0, side="left")
    experience = it.play(ids, mask)
    for name, item in vars(experience).items():
        assert not item.is_inference(), name
        assert not item.requires_grad, name
        assert item.device.type == "cpu", name


@pytest.mark.generations("G4")
def test_unpatched_upstream_makes_advantages_that_cannot_be_trained_on(upstream):
    assert scene().roll(**needed(upstream)).advantages.is_inference()


def test_a_prompt_without_a_token_is_refused_with_its_row(on):
    it = scene()
    ids, mask = pad_rows(PROMPTS, pad_token_id=0, side="left")
    mask[2] = 0
    with pytest.raises(ValueError, match=r"row 2 .*no real token"):
        it.play(ids, mask)


def test_a_maker_without_a_critic_is_refused(on):
    it = scene()
    it.maker.critic = None
    with pytest.raises(ValueError, match="no critic"):
        it.roll()


@pytest.mark.generations("G4")
def test_rows_may_be_sampled_and_forwarded_some_at_a_time(on):
    it = scene(inference_batch_size=2, logits_forward_batch_size=3)
    experience = it.roll()
    assert_frame(experience, PROMPTS, ANSWERS, 0)
    assert wrong_fields(experience, truth_of(on, it)) == {}


def test_the_rollout_reads_nothing_back(on, family):
    assert reads_of(scene(family)) == []


@pytest.mark.generations("G3", "G4")
def test_unpatched_upstream_reads_back_for_every_row(upstream):
    assert len(reads_of(scene(), **needed(upstream))) >= len(PROMPTS)


def reads_of(it, **given):
    """What a rollout reads back to the host beside what Hugging Face's own forwards do."""
    before = []
    with ExitStack() as stack:
        reads = stack.enter_context(HostReads())
        for model in it.models:
            enter = network(model).register_forward_pre_hook(
                lambda *_: before.append(len(reads.seen))
            )
            leave = network(model).register_forward_hook(
                lambda *_: reads.seen.__delitem__(slice(before.pop(), None))
            )
            stack.callback(enter.remove)
            stack.callback(leave.remove)
        it.roll(layout="interior", **given)
    return reads.seen
