"""The plugin does what it says: `python -m pytest`, with `--coati FOLDER` on a real coati."""

from pathlib import Path

import pytest
import torch

import coati_ext
from coati_ext.testing import (
    experience_maker,
    make_experience,
    standin,
    tiny_models,
    tiny_tokenizer,
)

PLUGIN = Path(__file__).with_name("leave_one_out.py")
MASK = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]]).bool()  # (B, A)
REWARDS = torch.tensor([[0.0, 0, 3], [5, 9, 9], [0, 1, 9], [1, 1, 1]])  # 3, 5, 1, 3 and junk


@pytest.fixture
def estimate(request, monkeypatch):
    """The estimator in force, on the given coati or on coati-ext's stand-in for the newest."""
    monkeypatch.syspath_prepend(request.config.getoption("--coati") or str(standin("G4")))

    def estimate(**options):
        coati_ext.enable({"plugins": [str(PLUGIN)], "leave_one_out": options})
        chosen = coati_ext.choice("estimate_advantages")
        return lambda rewards, mask: chosen(torch.zeros_like(rewards), rewards, mask, 1.0, 1.0)

    yield estimate
    coati_ext.disable()


def test_an_answer_is_compared_with_the_mean_of_the_others(estimate):
    advantages = estimate()(REWARDS, MASK)
    expected = torch.tensor([0.0, 8 / 3, -8 / 3, 0])
    torch.testing.assert_close(advantages, expected[:, None] * MASK)


def test_groups_do_not_know_each_other(estimate):
    by_two = estimate(group=2)
    torch.testing.assert_close(by_two(REWARDS, MASK)[:, 0], torch.tensor([-2.0, 2, -2, 2]))
    changed = REWARDS.clone()
    changed[2:] += 7
    torch.testing.assert_close(by_two(changed, MASK)[:2], by_two(REWARDS, MASK)[:2])


def test_a_level_that_all_answers_share_changes_nothing(estimate):
    last = MASK.long().sum(dim=1, keepdim=True) - 1
    raised = REWARDS.scatter_add(1, last, torch.full((4, 1), 100.0))
    chosen = estimate()
    torch.testing.assert_close(chosen(raised, MASK), chosen(REWARDS, MASK), atol=1e-4, rtol=0)


def test_rollouts_of_another_size_are_refused(estimate):
    with pytest.raises(coati_ext.errors.PluginError, match="4 answers cannot be cut into groups"):
        estimate(group=3)(REWARDS, MASK)


def test_coati_makes_experience_with_it(estimate):
    estimate()
    tokenizer = tiny_tokenizer(padding_side="left")
    prompts = torch.tensor([[5, 6, 7]] * 4)
    torch.manual_seed(0)
    maker = experience_maker(tiny_models("gpt2"), tokenizer=tokenizer, kl_coef=0.0)
    more = {"gt_answer": [None] * 4} if hasattr(maker, "use_grpo") else {}
    mask = torch.ones_like(prompts)
    made = make_experience(maker, prompts, mask, tokenizer=tokenizer, max_length=12, **more)
    score, advantages = made.reward, made.advantages[:, 0]
    torch.testing.assert_close(advantages, (score - score.mean()) * 4 / 3)
