"""Rows of rollouts of any width come out of the buffer in one frame, on any machine."""

from __future__ import annotations

import random
from contextlib import nullcontext
from dataclasses import fields
from importlib import import_module

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import coati_ext
from coati_ext.testing import (
    cpu_only,
    experience_maker,
    make_experience,
    tiny_models,
    tiny_tokenizer,
)
from coati_ext.testing.padding import pad_rows
from helpers.ppo_steps import (
    PROMPTS,
    advantage_for,
    buffer_of,
    largest_change,
    record,
    scripted,
    take_step,
    tokenizer_for,
    trainer_of,
)
from helpers.processes import on_two_ranks

PAD = 0
ATOL = 5e-6  # float32, and the wider batch sums in another order than the rollout


@pytest.fixture
def on(upstream):
    torch.manual_seed(0)
    with coati_ext.applied():
        yield upstream


def buffer_class():
    try:
        return import_module("coati.experience_buffer").NaiveExperienceBuffer
    except ImportError:  # its name before v0.3.2
        return import_module("coati.replay_buffer").NaiveReplayBuffer


def experience_class():
    return import_module("coati.experience_maker.base").Experience


def everything_in(buffer):
    return [buffer[row] for row in range(len(buffer))]


def made_up(prompts, answers, *, whole=False):
    """Experience of rows of random tokens, of so many tokens each: values and all are random.

    Args:
        prompts: tokens of each prompt.
        answers: tokens of each answer.
        whole: one value and advantage a row, as where an answer is one action.
    """
    rows, width, actions = len(prompts), max(prompts), max(answers)
    column = torch.arange(width + actions)
    starts = torch.tensor([width - length for length in prompts]).unsqueeze(1)
    ends = torch.tensor([width + length for length in answers]).unsqueeze(1)
    mask = (column >= starts) & (column < ends)
    real = mask[:, width:]

    def of_actions():
        return torch.randn(rows, actions).masked_fill(~real, 0)

    made = {
        "sequences": torch.randint(3, 64, mask.shape).masked_fill(~mask, PAD),
        "action_log_probs": of_actions(),
        "values": torch.randn(rows) if whole else of_actions(),
        "reward": torch.randn(rows),
        "kl": of_actions(),
        "advantages": torch.randn(rows, 1) if whole else of_actions(),
        "attention_mask": mask.long(),
        "action_mask": real,
    }
    known = [field.name for field in fields(experience_class())]
    return experience_class()(**{name: made[name] for name in known})


def rows_of(experience):
    """Each row without its pads: its tokens and whatever belongs to its real actions."""
    found = []
    columns = experience.sequences.size(1) - experience.action_mask.size(1)
    of_answers = ("values", "advantages") if experience.values.dim() == 1 else ()
    for row, real in enumerate(experience.action_mask.bool()):
        mask = experience.attention_mask[row].bool()
        tokens = experience.sequences[row][mask].tolist()
        # Action column j is sequence column S - A + j, and the real ones come first.
        count = int(real.sum())
        assert real[:count].all()
        assert mask[columns:].equal(real)
        answer = experience.sequences[row, columns:][real].tolist()
        assert tokens[-count:] == answer or not answer
        items = {}
        for field in fields(experience):
            item = getattr(experience, field.name)[row]
            if item.shape == real.shape and field.name not in of_answers:
                assert not item[~real].any()
                items[field.name] = item[real].tolist()
            elif field.name not in ("sequences", "attention_mask"):
                items[field.name] = item.tolist()
        found.append({**items, "tokens": tokens, "answer": answer})
    return found


lengths = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), min_size=1, max_size=3)


@settings(max_examples=30)
@given(batches=st.lists(lengths, min_size=1, max_size=3), whole=st.booleans(), data=st.data())
def test_rows_of_any_width_form_one_frame(on, batches, whole, data):
    buffer = buffer_class()(sample_batch_size=2)
    expected = []
    for batch in batches:
        prompts, answers = zip(*batch)
        experience = made_up(
            prompts, [max(1, n) if i == 0 else n for i, n in enumerate(answers)], whole=whole
        )
        expected += rows_of(experience)
        buffer.append(experience)
    order = data.draw(st.permutations(range(len(expected))))
    stacked = buffer.collate_fn([buffer[row] for row in order])
    assert rows_of(stacked) == [expected[row] for row in order]
    width = max(max(prompt for prompt, _ in batch) for batch in batches)
    assert stacked.sequences.size(1) == width + stacked.action_mask.size(1)


def test_what_fills_a_row_up_is_its_own_pad_and_no_token_of_it(on):
    buffer = buffer_class()(sample_batch_size=3)
    buffer.append(made_up([3, 1], [2, 1]))
    buffer.append(made_up([7], [5]))
    stacked = buffer.collate_fn(everything_in(buffer))
    padded = stacked.sequences[1][stacked.attention_mask[1] == 0]
    assert len(padded) == 10
    assert (padded == PAD).all()
    assert stacked.attention_mask.sum(dim=1).tolist() == [5, 2, 12]


def test_unpatched_upstream_stacks_rows_of_one_width_alone(upstream):
    """D31."""
    with cpu_only():
        buffer = buffer_class()(sample_batch_size=2)
        buffer.append(made_up([4], [5]))
        buffer.append(made_up([7], [5]))
        with pytest.raises(RuntimeError, match="size"):
            buffer.collate_fn(everything_in(buffer))


@pytest.mark.skipif(torch.cuda.is_available(), reason="with CUDA there is a device to name")
def test_a_buffer_can_be_made_without_cuda(upstream):
    """D31."""
    with pytest.raises((AssertionError, RuntimeError)):
        buffer_class()(sample_batch_size=2)
    with coati_ext.applied():
        buffer = buffer_class()(sample_batch_size=2)
        assert torch.device(buffer.target_device).type == "cpu"


def test_a_sample_is_of_rows_in_the_buffer(on):
    random.seed(0)
    buffer = buffer_class()(sample_batch_size=4)
    for prompts, answers in (([3, 5], [4, 2]), ([6], [1]), ([2, 2], [3, 7])):
        buffer.append(made_up(prompts, answers))
    known = rows_of(buffer.collate_fn(everything_in(buffer)))
    for _ in range(3):
        sampled = rows_of(buffer.sample())
        assert len(sampled) == 4
        assert all(row in known for row in sampled)
        assert all(sampled.count(row) == 1 for row in sampled)


def test_the_limit_keeps_the_newest_rows(on):
    buffer = buffer_class()(sample_batch_size=1, limit=3)
    first, second = made_up([3, 5], [4, 2]), made_up([6, 2], [1, 3])
    expected = [*rows_of(first)[1:], *rows_of(second)]
    buffer.append(first)
    assert len(buffer) == 2
    buffer.append(second)
    assert len(buffer) == 3
    assert rows_of(buffer.collate_fn(everything_in(buffer))) == expected
    buffer.clear()
    assert len(buffer) == 0


def rollouts(trainer, tokenizer):
    """Experience of prompts and answers of different widths, from several rollouts."""
    for rows, longest in ((PROMPTS[:2], 9), (PROMPTS[2:3], 24), (PROMPTS[1:], 11)):
        ids, mask = pad_rows(rows, pad_token_id=tokenizer.pad_token_id, side="left")
        yield make_experience(
            trainer.experience_maker, ids, mask, tokenizer=tokenizer, max_length=longest
        )


def test_a_step_on_rows_of_several_rollouts_has_ratio_one(upstream, family):
    torch.manual_seed(0)
    tokenizer, advantage = tokenizer_for(family, upstream), advantage_for(family, upstream)
    with cpu_only(), coati_ext.applied({"rollout": {"advantage": advantage}}):
        trainer = trainer_of(tiny_models(family), tokenizer)
        made = list(rollouts(trainer, tokenizer))
        assert len({(e.sequences.size(1), e.action_mask.size(1)) for e in made}) == 3
        buffer = buffer_of(trainer)
        for experience in made:
            buffer.append(experience)
        batch = buffer.collate_fn(everything_in(buffer))
        assert rows_of(batch) == [row for experience in made for row in rows_of(experience)]
        ratio, value = largest_change(take_step(trainer, batch), batch)
        assert ratio <= ATOL
        assert value <= ATOL


@pytest.mark.parametrize("sample_buffer", [False, True], ids=["in batches", "sampled"])
def test_upstreams_own_learning_loop_goes_through_the_buffer(on, sample_buffer):
    tokenizer = tiny_tokenizer(padding_side="left")
    with cpu_only():
        trainer = trainer_of(
            tiny_models("gpt2"), tokenizer, train_batch_size=3, sample_buffer=sample_buffer, lr=0.0
        )
        for experience in rollouts(trainer, tokenizer):
            buffer_of(trainer).append(experience)
        calls = record(trainer)
        if hasattr(trainer, "strategy"):
            trainer.dataloader = trainer.strategy.setup_dataloader(buffer_of(trainer))
        else:
            trainer._setup_update_phrase_dataload()
        trainer._learn(0)
    policy = calls[::2]
    assert len(policy) == (1 if sample_buffer else 2)  # of six rows
    for log_probs, old_log_probs, _ in policy:
        real = old_log_probs != 0
        assert log_probs.sub(old_log_probs)[real].abs().max() <= ATOL


@pytest.mark.generations("G1")
def test_without_a_pad_token_rows_have_a_mask_all_the_same(upstream, monkeypatch):
    """D31: upstream's mask is None then, which its buffer cannot stack."""
    models = tiny_models("gpt2")
    ids = torch.tensor([[1, 9, 8], [1, 5, 0]])

    def stacked():
        maker = experience_maker(models, tokenizer=None)
        scripted(monkeypatch, [[20, 21, 22, 23], [24, 25, 26, 27]])
        buffer = buffer_class()(sample_batch_size=2)
        buffer.append(maker.make_experience(ids, max_length=7))
        return buffer.collate_fn(everything_in(buffer))

    with cpu_only():
        with pytest.raises(TypeError):
            stacked()
        with coati_ext.applied():
            experience = stacked()
    assert experience.attention_mask.all()
    assert experience.action_mask.all()
    assert experience.action_mask.shape == (2, 4)


@pytest.mark.parametrize("pad", [2, 50256])
def test_a_row_is_filled_up_with_the_pad_that_it_has_whatever_its_id(on, pad):
    short, long = made_up([3, 1], [2, 1]), made_up([7], [5])
    short.sequences.masked_fill_(short.attention_mask == 0, pad)
    buffer = buffer_class()(sample_batch_size=3)
    buffer.append(short)
    buffer.append(long)
    stacked = buffer.collate_fn(everything_in(buffer))
    padded = stacked.sequences[1][stacked.attention_mask[1] == 0]
    assert padded.tolist() == [pad] * 10


def test_rows_without_an_attention_mask_keep_their_tokens(on):
    short, long = made_up([3, 3], [2, 2]), made_up([7], [5])
    for experience in (short, long):
        experience.attention_mask = None
    buffer = buffer_class()(sample_batch_size=3)
    buffer.append(short)
    buffer.append(long)
    stacked = buffer.collate_fn(everything_in(buffer))
    assert stacked.attention_mask is None
    assert stacked.sequences[:2, 4:9].equal(short.sequences)
    assert stacked.sequences[2].equal(long.sequences[0])


# --- which rows of its buffer a rank trains on ----------------------------------------------------


def trained_on(rank, cases):
    """For each case, the rows of its own that a rank's loader gives in each of ten epochs."""
    found = []
    for patched, counts in cases:
        torch.manual_seed(rank)  # else ten epochs leave out some row in one run of a hundred
        with cpu_only(), coati_ext.applied() if patched else nullcontext():
            found.append([sorted(rows) for rows in epochs_of(loader_of(counts[rank]))])
    return found


def loader_of(count):
    """The loader of a buffer of so many rows, in pairs; the reward of a row is its number."""
    buffer = buffer_class()(sample_batch_size=2)
    if count:
        made = made_up([3] * count, [2] * count)
        made.reward = torch.arange(count)
        buffer.append(made)
    home = import_module("coati.trainer.strategies.ddp")
    strategy = home.DDPStrategy.__new__(home.DDPStrategy)  # the processes are joined already
    if hasattr(home, "TorchDDPPlugin"):
        strategy.plugin = home.TorchDDPPlugin()
    return strategy.setup_dataloader(buffer)


def epochs_of(loader):
    for epoch in range(10):
        if isinstance(loader.sampler, torch.utils.data.DistributedSampler):
            loader.sampler.set_epoch(epoch)  # as the trainer does
        rows = []
        for batch in loader:
            torch.distributed.all_reduce(torch.ones(1))  # a step waits for the other rank
            rows += batch.reward.tolist()
        yield rows


@pytest.mark.generations("G1", "G2")
@pytest.mark.enough("G2", why="the stand-in of G1 has the same loader")
def test_each_of_two_ranks_trains_on_all_of_its_own_rows(upstream, tmp_path):
    """D41: upstream gives the half of a rank's rows to the other, which has rows of its own."""
    if (upstream.package / "trainer" / "strategies" / "naive.py").exists():
        pytest.skip("before v0.3.1 the loader has no sampler")
    cases = [(False, [8, 8]), (True, [8, 8]), (True, [8, 5]), (True, [8, 0])]
    ranks = on_two_ranks(trained_on, tmp_path, cases)
    for rank, (unpatched, patched, uneven, empty) in enumerate(ranks):
        assert {len(rows) for rows in unpatched} == {4}
        assert patched == [[*range(8)]] * 10
        # As many steps as the other takes, and no row is left out for good.
        assert {len(rows) for rows in uneven} == {4}
        assert {row for rows in uneven for row in rows} == {*range(cases[2][1][rank])}
        assert empty == [[]] * 10
