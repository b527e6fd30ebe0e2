"""What two ranks have to agree upon, in two real processes. A hang is a failure, after a while."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

import coati_ext
from coati_ext import tensors
from coati_ext.rollout import pipeline, ranks
from coati_ext.testing import experience_maker, make_experience, tiny_models, tiny_tokenizer
from coati_ext.testing.padding import pad_rows
from helpers.processes import on_two_ranks

CPU = torch.device("cpu")


# --- numbers, without any coati --------------------------------------------------------------


class Sharded(nn.Module):
    """As a tensor-parallel plugin wraps an actor."""

    def __init__(self, module: nn.Module, group: Any) -> None:
        super().__init__()
        self.module = module
        self.tp_group = group


class Wrapper(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def noise(model, seed):
    """(what sampling draws, what is drawn afterwards) from a generator of this seed."""
    torch.manual_seed(seed)
    with ranks.sampling_stream(model, CPU):
        sampled = torch.rand(3).tolist()
    return sampled, torch.rand(3).tolist()


def numbers_of(rank):
    from coati_ext.patches.rollout import whitened

    actor = nn.Linear(1, 1)
    together = Wrapper(Sharded(actor, dist.group.WORLD))
    own_groups = [dist.new_group([0]), dist.new_group([1])]
    torch.manual_seed(7)
    torch.randint(2**62, (1,))
    after_one = torch.rand(3).tolist()
    torch.manual_seed(7)
    successive = []
    for _ in range(2):
        with ranks.sampling_stream(actor, CPU):
            successive.append(torch.rand(3).tolist())
    values, mask = halves()[rank]
    given = torch.tensor([1.0, float(rank)])
    return {
        "alike": noise(actor, 7),
        "again": noise(actor, 7),
        "other seed": noise(actor, 8),
        "after one": after_one,
        "successive": successive,
        "one group": noise(together, 7),
        "one group, other seeds": noise(together, 7 + rank),
        "own groups": noise(Sharded(actor, own_groups[rank]), 7),
        "smallest": [ranks.smallest(3 + rank, CPU), ranks.smallest(-rank, CPU)],
        "total": ranks.total(given).tolist(),
        "given": given.tolist(),
        "whitened": whitened(values, mask).tolist(),
    }


def halves():
    """The advantages of two ranks, of different sizes, and their masks."""
    draw = torch.Generator().manual_seed(0)
    first = 5 + torch.randn(2, 6, generator=draw), torch.arange(6) < torch.tensor([[6], [2]])
    second = -3 * torch.randn(1, 4, generator=draw), torch.arange(4) < torch.tensor([[3]])
    return first, second


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    return on_two_ranks(numbers_of, tmp_path_factory.mktemp("ranks"))


@pytest.mark.slow
class TestSamplingStream:
    def test_ranks_seeded_alike_sample_with_different_noise(self, numbers):
        first, second = (item["alike"][0] for item in numbers)
        assert first != second

    def test_a_seed_reproduces_it_and_another_does_not(self, numbers):
        for item in numbers:
            assert item["again"] == item["alike"]
            assert item["other seed"][0] != item["alike"][0]

    def test_one_rollout_is_not_the_next(self, numbers):
        for item in numbers:
            assert item["successive"][0] == item["alike"][0]
            assert item["successive"][1] != item["successive"][0]

    def test_the_generator_is_afterwards_as_if_one_number_had_been_drawn(self, numbers):
        for item in numbers:
            assert item["alike"][1] == item["after one"]

    def test_a_tensor_parallel_group_samples_with_one_noise(self, numbers):
        first, second = numbers
        assert first["one group"] == second["one group"]
        assert first["one group, other seeds"][0] == second["one group, other seeds"][0]

    def test_groups_of_one_sample_each_with_its_own(self, numbers):
        first, second = (item["own groups"][0] for item in numbers)
        assert first != second


@pytest.mark.slow
class TestAgreement:
    def test_on_the_smallest_number(self, numbers):
        assert [item["smallest"] for item in numbers] == [[3, -1]] * 2

    def test_on_the_sum_which_leaves_what_was_given(self, numbers):
        assert [item["total"] for item in numbers] == [[2.0, 1.0]] * 2
        assert [item["given"] for item in numbers] == [[1.0, 0.0], [1.0, 1.0]]

    def test_whitening_of_two_ranks_is_that_of_their_batches_together(self, numbers):
        first, second = halves()
        values = torch.cat([first[0].flatten(), second[0].flatten()])
        mask = torch.cat([first[1].flatten(), second[1].flatten()])
        expected = tensors.whitened(values, mask, tensors.moments(values, mask))
        got = torch.cat([torch.tensor(item["whitened"]).flatten() for item in numbers])
        assert got.sub(expected).abs().max() <= 1e-6
        alone = tensors.whitened(*first, tensors.moments(*first))
        assert alone.flatten().sub(expected[:12]).abs().max() > 0.1  # it makes a difference


class TestAlone:
    def test_the_users_generator_is_sampled_from(self):
        torch.manual_seed(7)
        expected = torch.rand(6).tolist()
        before, after = noise(nn.Linear(1, 1), 7)
        assert before + after == expected

    def test_there_is_nothing_to_agree_upon(self):
        given = torch.tensor([1.0, 2.0])
        assert not ranks.several()
        assert ranks.total(given) is given
        assert ranks.smallest(5, CPU) == 5


# --- skipping a step -------------------------------------------------------------------------


def skips_of(rank):
    """Whether this rank skips a step, for each batch: without the patches and with them."""
    from coati.models.loss import PolicyLoss

    def log_ratios(exploding, ordinary):
        """One exploding ratio on the second rank, among ordinary ones on both."""
        item = torch.zeros(1, ordinary + 1)
        item[0, 0] = exploding if rank else 0.0
        return item

    def decide(log_ratio):
        ones = torch.ones_like(log_ratio)
        return bool(PolicyLoss()(log_ratio, torch.zeros_like(log_ratio), ones, ones)[1])

    batches = [
        log_ratios(50.0, 3),  # too much for both together
        log_ratios(math.log(60.0), 1),  # too much for one rank, not for both
        log_ratios(0.0, 3),
    ]
    before = [decide(item) for item in batches]
    with coati_ext.applied():
        return before, [decide(item) for item in batches]


@pytest.mark.slow
@pytest.mark.generations("G3", "G4")
def test_ranks_agree_upon_skipping_a_step(upstream, tmp_path):
    """D28: upstream's ranks do not, so that one waits for the backward of the other."""
    (first_before, first), (second_before, second) = on_two_ranks(skips_of, tmp_path)
    assert first_before == [False, False, False]
    assert second_before == [True, True, False]
    assert first == second == [True, False, False]


# --- rolling out -----------------------------------------------------------------------------


def rolled_out(rank):
    """How many tokens were sampled, and the answers, for several batches of prompts."""
    tokenizer = tiny_tokenizer(padding_side="left")
    models = tiny_models("gpt2")
    maker = experience_maker(models, tokenizer=tokenizer)
    own = [[[1, 5], [1, 6, 7]], [list(range(10, 19)), [1, 5]]][rank]
    same = [[1, 5, 9], [1, 6]]
    steps = []
    models.actor.register_forward_pre_hook(lambda *_: steps.append(1))

    def roll_out(rows, width, **given):
        torch.manual_seed(0)  # launchers seed every rank alike
        ids, mask = pad_rows(rows, pad_token_id=0, side="left", width=width)
        steps.clear()
        experience = make_experience(
            maker, ids, mask, tokenizer=tokenizer, max_length=14, early_stopping=True, **given
        )
        answers = experience.sequences[:, -experience.action_mask.size(1) :]
        return {"steps": len(steps), "width": answers.size(1), "answers": answers.tolist()}

    with coati_ext.applied():
        return {
            "alike": roll_out(same, 9),
            "more than fits": roll_out(own, 9, max_new_tokens=8),
            "as many as fit": roll_out(own, 9),
            "of other widths": roll_out(own, None),
            "of other widths, more than fits": roll_out(own, None, max_new_tokens=8),
            "padded to the full on one": roll_out(own, [9, 14][rank], max_new_tokens=8),
            "no room on one": roll_out([same, [list(range(10, 24)), [1]]][rank], 14),
        }


@pytest.mark.slow
def test_a_rollout_of_two_ranks_takes_as_many_steps_on_each(upstream, tmp_path):
    """The sampler of each rank asks the others at each step whether they have finished."""
    first, second = on_two_ranks(rolled_out, tmp_path)
    for name in first:
        assert first[name]["steps"] == second[name]["steps"], name
        assert first[name]["width"] == second[name]["width"], name
    for name in ("more than fits", "of other widths", "of other widths, more than fits"):
        assert first[name]["width"] <= 14 - 9
    assert first["no room on one"]["answers"] == [[0], [0]]
    assert first["alike"]["answers"] != second["alike"]["answers"]


def scored(rank):
    """How many forwards each model makes to score rows of few or of many tokens, and the scores."""
    tokenizer = tiny_tokenizer(padding_side="left")
    models, forwards = tiny_models("gpt2"), []
    maker = experience_maker(models, tokenizer=tokenizer)
    rows = [[[1, 5], [1, 6], [1, 7], [1, 8]], [[1, *range(10, 18)], [2, *range(20, 28)], [3], [4]]]
    ids, mask = pad_rows(rows[rank], pad_token_id=0, side="left")
    for model in (models.critic, models.reward_model):
        model.register_forward_pre_hook(lambda *_: forwards.append(1))
    found = []
    for pipeline._AT_ONCE in (6, 2048):
        torch.manual_seed(0)
        forwards.clear()
        with coati_ext.applied({"rollout": {"generate": "upstream"}}):
            made = make_experience(maker, ids, mask, tokenizer=tokenizer, max_length=14, top_k=1)
        numbers = made.action_log_probs, made.values, made.reward
        found.append((len(forwards), torch.cat([item.flatten() for item in numbers]).tolist()))
    return found


@pytest.mark.slow
def test_two_ranks_score_in_as_many_parts_whatever_their_rows(upstream, tmp_path):
    """In a forward of a wrapper ranks wait for each other."""
    first, second = on_two_ranks(scored, tmp_path)
    (parts, small), (whole, large) = first
    assert [item[0] for item in first] == [item[0] for item in second]
    assert whole == 2
    assert parts > 4
    assert small == pytest.approx(large, abs=1e-6)
