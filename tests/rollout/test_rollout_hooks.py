"""Every step of a rollout is a hook that a plugin can take over, and one can watch."""

from __future__ import annotations

import textwrap

import pytest
import torch

import coati_ext
from coati_ext.errors import PluginError
from coati_ext.testing import (
    cpu_only,
    experience_maker,
    layouts,
    make_experience,
    ppo_trainer,
    tiny_models,
    tiny_tokenizer,
    training_step,
)

PROMPTS = [[1, 9, 8, 7], [1, 5], [1, 14, 6, 33, 21]]


@pytest.fixture
def plugin(tmp_path):
    """Writes a plugin of one file and gives the configuration that uses it."""

    def write(code, name="mine", **sections):
        header = "import torch\nfrom coati_ext import hookimpl\n\n"
        (tmp_path / f"{name}.py").write_text(header + textwrap.dedent(code))
        return {"plugins": [f"./{name}.py"], **sections}

    return write


def experience(**options):
    """An experience of three prompts and the maker that made it."""
    tokenizer = tiny_tokenizer(padding_side="left")
    maker = experience_maker(tiny_models(), tokenizer=tokenizer, kl_coef=0.1, **options)
    _, ids, mask = next(layouts(PROMPTS, pad_token_id=0, width=8))
    torch.manual_seed(0)
    made = make_experience(maker, ids, mask, tokenizer=tokenizer, max_length=20)
    return made, maker


def test_a_plugin_shapes_the_reward(upstream, plugin):
    config = plugin(
        """
        @hookimpl
        def shape_reward(score, log_ratio, action_mask, kl_coef):
            assert score.shape == log_ratio.shape[:1] and log_ratio.shape == action_mask.shape
            assert kl_coef == 0.1
            return action_mask * 2.0
        """,
        rollout={"advantage": "gae", "gamma": 1.0, "lam": 1.0},
    )
    with coati_ext.applied(config):
        made, _ = experience()
    left = made.action_mask.flip(1).cumsum(1).flip(1) * 2.0
    returns = (made.advantages + made.values) * made.action_mask
    assert returns.sub(left * made.action_mask).abs().max() < 1e-5


def test_a_plugin_estimates_advantages_and_actions_become_tokens(upstream, plugin):
    """In G1 and G2 too, whose own algorithm has one action for a whole answer."""
    config = plugin(
        """
        @hookimpl
        def estimate_advantages(values, rewards, action_mask, gamma, lam):
            assert values.shape == rewards.shape == action_mask.shape
            return action_mask * (gamma + lam)
        """,
        rollout={"gamma": 0.5, "lam": 0.25},
    )
    with coati_ext.applied(config):
        assert coati_ext.options("rollout").advantage == "mine"
        made, _ = experience()
    assert made.values.shape == made.advantages.shape == made.action_mask.shape
    assert made.advantages.equal(made.action_mask * 0.75)


def test_a_plugin_scales_the_advantages_of_the_policy_loss(upstream, plugin):
    config = plugin(
        """
        @hookimpl
        def scale_advantages(advantages, action_mask):
            assert advantages.shape == action_mask.shape
            return advantages * 0
        """
    )
    seen = {}
    with coati_ext.applied(config), cpu_only():
        made, _ = experience()
        trainer = ppo_trainer(tiny_models(), tokenizer=tiny_tokenizer(), max_length=20)
        trainer.writer = None
        loss = trainer.actor_loss_fn.forward

        def watched(log_probs, old, advantages, action_mask=None):
            seen["advantages"] = advantages
            return loss(log_probs, old, advantages, action_mask=action_mask)

        trainer.actor_loss_fn.forward = watched
        training_step(trainer, made)
    assert not seen["advantages"].any()
    assert made.advantages.any()


def test_a_plugin_scores_rows(upstream, plugin):
    config = plugin(
        """
        @hookimpl
        def score_rows(model, frame, extras):
            assert frame.sequences.shape == frame.attention_mask.shape == frame.position_ids.shape
            assert set(extras) <= {"response_start", "response_end", "gt_answer"}
            return frame.action_mask.sum(dim=1).float()
        """,
        rollout={"score_clip": 0.0},
    )
    with coati_ext.applied(config):
        made, _ = experience()
    if hasattr(made, "kl"):
        assert made.reward.equal(made.action_mask.sum(dim=1).float())
    else:  # the same actor and reference: no penalty
        assert made.reward.sub(made.action_mask.sum(dim=1)).abs().max() < 1e-5


def test_a_plugin_gives_log_probs_and_values_in_rollout_and_training(upstream, plugin):
    config = plugin(
        """
        @hookimpl
        def action_log_probs(model, frame):
            zero = sum(item.sum() for item in model.parameters()) * 0
            return zero - frame.sequences[:, -frame.num_actions :]

        @hookimpl
        def state_values(model, frame):
            zero = sum(item.sum() for item in model.parameters()) * 0
            return zero + frame.position_ids[:, -frame.num_actions - 1 : -1]
        """,
        rollout={"advantage": "gae"},
    )
    with coati_ext.applied(config), cpu_only():
        made, _ = experience()
        answers = made.sequences[:, -made.action_mask.size(1) :]
        assert made.action_log_probs.equal(-(answers * made.action_mask).float())
        before = torch.tensor([[len(prompt) - 1] for prompt in PROMPTS])
        steps = torch.arange(made.action_mask.size(1))
        assert made.values.equal(((before + steps) * made.action_mask).float())
        trainer = ppo_trainer(tiny_models(), tokenizer=tiny_tokenizer(), max_length=20)
        trainer.writer = None
        training_step(trainer, made)


def test_a_plugin_samples_marks_and_aligns(upstream, plugin):
    config = plugin(
        """
        @hookimpl
        def align_prompts(input_ids, attention_mask):
            from coati_ext import tensors
            return tensors.left_frame(input_ids, attention_mask)  # untrimmed

        @hookimpl
        def sample_answers(maker, input_ids, attention_mask, new_tokens, generate_kwargs):
            assert input_ids.shape[1] == 8 and attention_mask[:, -1].all()
            assert new_tokens == 12 and generate_kwargs["max_length"] == 20
            return torch.cat([input_ids, torch.full((len(input_ids), 5), 7)], dim=1)

        @hookimpl
        def mark_actions(sequences, prompt_width, stops):
            assert prompt_width == 8 and (2,) in tuple(map(tuple, stops))
            mask = torch.ones(len(sequences), sequences.shape[1] - 8, dtype=torch.bool)
            mask[:, 3:] = False
            return mask, mask.any(dim=1)
        """
    )
    with coati_ext.applied(config):
        made, _ = experience()
    assert made.sequences.size(1) == 13
    assert made.action_mask.sum(dim=1).tolist() == [3, 3, 3]
    assert made.attention_mask.sum(dim=1).tolist() == [len(prompt) + 3 for prompt in PROMPTS]
    assert (made.sequences[:, 8:11] == 7).all()
    assert (made.sequences[:, 11:] == 0).all()


def test_observers_see_every_experience_with_its_maker(upstream, plugin):
    config = plugin(
        """
        seen = []

        @hookimpl
        def experience_made(experience, maker):
            seen.append((experience, maker))
        """
    )
    with coati_ext.applied(config):
        made, maker = experience()
        import coati_ext_plugin_mine

        assert coati_ext_plugin_mine.seen == [(made, maker)]


def test_a_failing_observer_is_named(upstream, plugin):
    config = plugin(
        """
        @hookimpl
        def experience_made(experience):
            raise RuntimeError("disk full")
        """
    )
    with coati_ext.applied(config), pytest.raises(PluginError, match=r"mine.*mine\.py.*disk full"):
        experience()


def test_without_a_choice_each_generation_keeps_its_algorithm(upstream):
    with coati_ext.applied():
        options = coati_ext.options("rollout")
        whole_answers = upstream.generation in ("G1", "G2")
        assert options.advantage == ("sequence" if whole_answers else "gae")
        assert options.score_clip == (0.0 if whole_answers else 5.0)
        made, _ = experience()
    rows = len(PROMPTS)
    assert made.values.shape == ((rows,) if whole_answers else made.action_mask.shape)
