"""What a caller of the critic gets who is neither the pipeline nor the trainer's step."""

from __future__ import annotations

import pytest
import torch

import coati_ext
from coati_ext.rollout import Frame, state_values
from coati_ext.testing import experience_maker, layouts, tiny_critic, tiny_models, tiny_tokenizer
from coati_ext.testing.padding import pad_rows
from coati_ext.testing.rollouts import make_experience
from helpers import reference

ROWS = [[1, 9, 8, 7, 12, 2], [1, 5, 2], [1, 14, 6, 33, 21, 40, 17, 30, 9, 2]]
PROMPTS = [[1, 9, 8, 7], [1, 5], [1, 14, 6, 33, 21]]
ATOL = 1e-5


def by_hand(critic, rows):
    """The value head at the last token of each row, each row alone."""
    return torch.tensor([reference.score(critic, row) for row in rows])


def away(values, expected):
    assert values.shape == expected.shape
    return float(values.detach().sub(expected).abs().max())


@pytest.mark.generations("G1", "G2")
def test_the_value_of_a_row_is_that_of_its_last_real_token(on, family):
    critic = tiny_critic(family)
    expected = by_hand(critic, ROWS)
    for layout, ids, mask in layouts(ROWS, pad_token_id=0):
        for given in (mask, mask.bool(), mask.float()):
            assert away(critic(ids, attention_mask=given), expected) <= ATOL, layout
    unpadded = torch.tensor([ROWS[0]] * 2)
    assert away(critic(unpadded, attention_mask=None), expected[[0, 0]]) <= ATOL


@pytest.mark.generations("G1", "G2")
def test_a_critic_in_training_gives_a_row_one_value_with_a_gradient(on):
    critic = tiny_critic("gpt2").train()
    ids, mask = pad_rows(ROWS, pad_token_id=0, side="right")
    critic(ids, attention_mask=mask).sum().backward()
    assert all(item.grad is not None for item in critic.value_head.parameters())


@pytest.mark.generations("G1")
@pytest.mark.parametrize("advantage", ["sequence", "gae"])
def test_a_mask_of_actions_tells_where_an_answer_begins(upstream, family, advantage):
    """In G1 a whole answer is one action, and its baseline must not depend on it."""
    models, tokenizer = tiny_models(family), tiny_tokenizer(padding_side="left")
    with coati_ext.applied({"rollout": {"advantage": advantage}}):
        maker = experience_maker(models, tokenizer=tokenizer)
        ids, mask = pad_rows(PROMPTS, pad_token_id=0, side="left")
        made = make_experience(maker, ids, mask, tokenizer=tokenizer, max_length=12)
        asked = models.critic(made.sequences, made.action_mask, made.attention_mask)
        rows = PROMPTS
        if advantage == "gae":
            real = made.attention_mask.bool()
            rows = [ids[seen].tolist() for ids, seen in zip(made.sequences, real)]
        else:
            assert away(asked, made.values) <= ATOL
    assert away(asked, by_hand(models.critic, rows)) <= ATOL


@pytest.mark.generations("G1")
def test_a_mask_as_wide_as_the_row_tells_nothing(on):
    """Upstream's own test_models gives one."""
    critic, ids = tiny_critic("gpt2"), torch.tensor([ROWS[0]])
    ones = torch.ones_like(ids)
    assert away(critic(ids, ones, ones), by_hand(critic, ROWS[:1])) <= ATOL


@pytest.mark.generations("G1")
def test_a_row_without_a_prompt_has_no_value_before_its_answer(on):
    ids, mask = torch.tensor([[0, 2, 3]]), torch.tensor([[0, 1, 1]])
    with pytest.raises(ValueError, match=r"row 0 .* no real token"):
        tiny_critic("gpt2")(ids, mask[:, 1:], mask)


@pytest.mark.generations("G3", "G4")
def test_the_critic_of_tokens_keeps_its_shape(on):
    critic = tiny_critic("gpt2")
    ids, mask = pad_rows(ROWS, pad_token_id=0, side="left")
    values = critic(ids, attention_mask=mask)
    assert values.shape == ids.shape
    first = [reference.values(critic, row[:1], row[1:]) for row in ROWS]
    for got, expected in zip(values, first):
        assert away(got[-len(expected) :], torch.tensor(expected).float()) <= ATOL


def test_a_critic_of_the_users_is_asked_for_tokens_through_its_own_forward(on):
    """Its forward has upstream's signature, so that nothing else could reach the inner one."""
    critic = tiny_critic("gpt2")
    frame = frame_of_rows()
    plain = state_values(critic, frame)

    class Halved(type(critic)):
        def forward(self, *args, attention_mask=None):
            return super().forward(*args, attention_mask=attention_mask) / 2

    critic.__class__ = Halved
    assert away(state_values(critic, frame), plain.detach() / 2) <= ATOL


@pytest.mark.generations("G1", "G2")
def test_after_a_failure_within_the_hook_a_critic_gives_rows_again(on):
    critic = tiny_critic("gpt2")
    ids, mask = pad_rows(ROWS, pad_token_id=0, side="left")
    with pytest.raises(AttributeError):
        state_values(critic, None)
    assert critic(ids, attention_mask=mask).shape == (len(ROWS),)


def frame_of_rows():
    ids, mask = pad_rows(ROWS, pad_token_id=0, side="left")
    return Frame.of(ids, mask, mask[:, -2:].bool())
