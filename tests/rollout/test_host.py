"""How often the host reads from the device: once a batch, however many rows, columns and models."""

from __future__ import annotations

import gc
from contextlib import nullcontext

import numpy
import pytest
import torch

import coati_ext
from coati_ext.rollout import Frame, host
from coati_ext.tensors import left_frame
from coati_ext.testing import (
    cpu_only,
    experience_maker,
    layouts,
    make_experience,
    ppo_trainer,
    tiny_models,
    tiny_reward_model,
    tiny_tokenizer,
    training_step,
)

ROWS = [[1, 9, 8, 7], [1, 5], [1, 14, 6, 33]]


@pytest.fixture
def reads(monkeypatch):
    """What is copied from a device, with the CPU as if it were one."""
    seen, read = [], host.read

    def counted(numbers):
        seen.append(tuple(numbers.shape))
        return read(numbers)

    monkeypatch.setattr(host, "_shared", lambda tensor: False)
    monkeypatch.setattr(host, "read", counted)
    return seen


def batch(times):
    _, ids, mask = next(layouts(ROWS * times, pad_token_id=0, width=4 * times))
    return ids, mask


@pytest.mark.parametrize("level", ["off", "groups", "auto"])
@pytest.mark.parametrize("times", [1, 4])
def test_a_rollout_and_a_training_step_read_once_each(upstream, reads, times, level):
    """The width of the prompts is one more read of a rollout, on a device."""
    tokenizer, models = tiny_tokenizer(padding_side="left"), tiny_models("llama")
    longest = 4 * times + 6
    with coati_ext.applied({"token_saving": {"level": level}}), cpu_only():
        maker = experience_maker(models, tokenizer=tokenizer, kl_coef=0.1)
        made = make_experience(maker, *batch(times), tokenizer=tokenizer, max_length=longest)
        assert len(reads) <= 1
        reads.clear()
        trainer = ppo_trainer(models, tokenizer=tokenizer, max_length=longest)
        training_step(trainer, made)
        assert len(reads) <= 1


@pytest.mark.parametrize("times", [1, 4])
def test_a_reward_model_in_training_reads_once(upstream, reads, times):
    model = tiny_reward_model("llama")
    with coati_ext.applied():
        model(*batch(times)).sum().backward()
    assert len(reads) == 1


def test_what_is_derived_is_known(reads):
    ids, mask = batch(2)
    mask = mask != 0
    host.learn(ids, mask)
    moved, moved_mask = host.compact(ids, mask)
    frame = Frame.of(moved, moved_mask, moved_mask[:, -2:])
    part = frame.rows(slice(1, 3))
    reads.clear()
    for tensor in (moved, moved_mask, part.sequences, part.attention_mask, part.action_mask):
        assert numpy.array_equal(host.array_of(tensor), tensor.numpy())
    assert reads == []
    expected, _ = left_frame(ids, mask)
    assert moved.equal(expected[:, -moved.size(1) :])
    assert moved_mask.any(dim=0).all()


def test_nothing_is_known_of_a_tensor_that_is_gone(reads):
    known = len(host._known)
    for _ in range(20):
        ids, mask = batch(1)
        host.learn(ids, mask != 0)
    del ids, mask
    gc.collect()
    assert len(host._known) == known
    fresh = torch.full((2, 3), 7)
    assert host.array_of(fresh).tolist() == [[7] * 3] * 2


@pytest.mark.parametrize("mode", [nullcontext, torch.inference_mode])
def test_a_tensor_that_was_written_to_is_read_again(reads, mode):
    with mode():
        ids = torch.arange(12).view(3, 4).clone()
        mask = torch.ones(3, 4, dtype=torch.bool)
        frame = Frame.of(ids, mask, mask[:, -2:].clone())
        part = frame.rows(slice(1, 3))
        frame.sequences[1, 0] = 99  # which the part is a view of
        frame.attention_mask[2].fill_(False)
        frame.action_mask.logical_not_()
        for one in (frame, part):
            for tensor in (one.sequences, one.attention_mask, one.action_mask):
                assert numpy.array_equal(host.array_of(tensor), tensor.numpy())
        assert 99 in host.array_of(host.compact(ids, mask)[0])
