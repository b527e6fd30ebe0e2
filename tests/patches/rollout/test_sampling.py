"""Answers of coati's own sampler: those of each prompt alone, ended where the sampler ended."""

from __future__ import annotations

import inspect
import re
from contextlib import contextmanager
from importlib import import_module
from unittest import mock

import pytest
import torch
import transformers

import coati_ext
from coati_ext.patching.patch import GENERATIONS
from coati_ext.testing import (
    cpu_only,
    families,
    layouts,
    make_experience,
    ppo_trainer,
    training_step,
)
from coati_ext.testing.padding import pad_rows
from helpers.reference import TOLERANCES, answer_in, assert_frame, greedy, network
from helpers.scenes import LAYOUTS, PROMPTS, WIDTH, needed, scene

END = [2]
ROOM = 6  # tokens of an answer
LONGEST = WIDTH + ROOM
SMALL_FAMILIES = ("gpt2", "opt", "llama")
SMALL = 8  # a vocabulary in which ends and pads come up often
SMALL_PROMPTS = [[1, 5], [1, 4, 6, 7], [1, 6, 3, 2, 5, 4]]
# From there on Hugging Face's preparation of a step needs what its own `generate` brings along.
NEEDS_CACHE_POSITION = tuple(map(int, transformers.__version__.split(".")[:2])) >= (4, 42)


def padded(prompts, layout, pad_token_id=0, width=WIDTH):
    found = {
        name: (ids, mask)
        for name, ids, mask in layouts(prompts, pad_token_id=pad_token_id, width=width)
    }
    return found[layout]


def answers_in(experience):
    """The action columns of each row, pads included."""
    return experience.sequences[:, -experience.action_log_probs.size(1) :]


def to_sample(upstream):
    """What unpatched upstream needs in order to sample at all with the installed transformers."""
    given = {"cache_position": torch.arange(WIDTH)} if NEEDS_CACHE_POSITION else {}
    return {**given, **needed(upstream)}


@contextmanager
def recorded():
    """The log-probabilities (B, V) and the tokens (B,) of each step of the sampler."""
    steps = []
    draw = torch.multinomial

    def multinomial(chances, *args, **kwargs):
        tokens = draw(chances, *args, **kwargs)
        steps.append((chances.log(), tokens.squeeze(1)))
        return tokens

    with mock.patch.object(torch, "multinomial", multinomial):
        yield steps


# --- greedy decoding -------------------------------------------------------------------------


@pytest.mark.parametrize("family", families())
def test_greedy_decoding_of_a_padded_batch_is_that_of_each_prompt_alone(on, family):
    """With what the trainer gives to `generate`, with and without a cache, and with nothing."""
    it = scene(family)
    expected = [greedy(it.models.actor, prompt, ROOM) for prompt in PROMPTS]
    trainers = {}
    nothing = {"prepare_inputs_fn": None, "update_model_kwargs_fn": None}
    cases = [(layout, trainers) for layout in LAYOUTS]
    cases += [("interior", given) for given in ({"use_cache": True}, {"use_cache": False}, nothing)]
    for layout, given in cases:
        ids, mask = padded(PROMPTS, layout)
        experience = it.play(ids, mask, max_length=LONGEST, top_k=1, **given)
        assert_frame(experience, PROMPTS, expected, 0)


@pytest.mark.generations("G1", "G2")
def test_pads_at_the_ends_are_found_where_no_mask_says_so(on):
    it = scene()
    expected = [greedy(it.models.actor, prompt, ROOM) for prompt in PROMPTS]
    for layout in ("left", "right", "both"):
        ids, _ = padded(PROMPTS, layout)
        experience = it.play(ids, None, max_length=LONGEST, top_k=1)
        assert_frame(experience, PROMPTS, expected, 0)


@pytest.mark.generations("G1")
def test_unpatched_upstream_answers_a_right_padded_prompt_otherwise(upstream):
    it = scene()
    ids, mask = padded(PROMPTS, "right")
    experience = it.play(ids, mask, max_length=LONGEST, top_k=1, **to_sample(upstream))
    expected = [greedy(it.models.actor, prompt, ROOM) for prompt in PROMPTS]
    assert answers_in(experience).tolist() != expected


@pytest.mark.generations("G2", "G3", "G4")
def test_a_tokenizer_that_pads_on_the_right_is_as_it_was_afterwards(upstream):
    it = scene(side="right")
    ids, mask = padded(PROMPTS, "right")
    with pytest.raises(AssertionError):
        it.play(ids, mask, max_length=LONGEST, **to_sample(upstream))
    with coati_ext.applied():
        experience = it.play(ids, mask, max_length=LONGEST, top_k=1)
        assert it.tokenizer.padding_side == "right"
        expected = [greedy(it.models.actor, prompt, ROOM) for prompt in PROMPTS]
        assert_frame(experience, PROMPTS, expected, 0)


@pytest.mark.skipif(not NEEDS_CACHE_POSITION, reason="this transformers needs no cache_position")
@pytest.mark.generations("G3", "G4")
def test_unpatched_upstream_cannot_sample_with_its_trainers_arguments(upstream):
    it = scene()
    ids, mask = padded(PROMPTS, "left")
    with pytest.raises(KeyError, match="cache_position"):
        it.play(ids, mask, max_length=LONGEST, use_cache=False, **needed(upstream))


# --- the sampler and the masks agree -----------------------------------------------------------


def small_scene(family="gpt2", **options):
    return scene(family, vocab_size=SMALL, **options)


def sample_recorded(it, stops=(END,), *, seed=0, layout="left", room=10, **given):
    """Experience of real sampling, and the answers that the sampler drew up to their ends."""
    pad = it.tokenizer.pad_token_id
    ids, mask = padded(SMALL_PROMPTS, layout, pad)
    torch.manual_seed(seed)
    with recorded() as steps:
        experience = it.play(ids, mask, max_length=WIDTH + room, **given)
    drawn = torch.stack([tokens for _, tokens in steps], dim=1).tolist()
    answers = [answer_in(row, prompt, stops) for row, prompt in zip(drawn, SMALL_PROMPTS)]
    return experience, answers, [log_probs for log_probs, _ in steps]


def off_policy(experience, answers, steps):
    """The largest difference of a stored log-probability from the sampler's own."""
    return max(
        abs(float(experience.action_log_probs[i, j] - steps[j][i, token]))
        for i, answer in enumerate(answers)
        for j, token in enumerate(answer)
    )


@pytest.mark.parametrize("number", range(3), ids=SMALL_FAMILIES)
def test_the_stored_tokens_and_log_probs_are_the_samplers_own(on, number):
    """Each family with each kind of pads, and each generation with every one of both."""
    pad = ("pad", "eos", "bos")[(number + GENERATIONS.index(on.generation)) % 3]
    it = small_scene(SMALL_FAMILIES[number], pad=pad)
    for seed, layout in enumerate(LAYOUTS):
        experience, answers, steps = sample_recorded(it, seed=seed, layout=layout)
        assert_frame(experience, SMALL_PROMPTS, answers, it.tokenizer.pad_token_id)
        assert off_policy(experience, answers, steps) <= TOLERANCES["action_log_probs"]


def test_unpatched_upstream_stores_other_log_probs_of_left_padded_gpt2(upstream):
    it = small_scene()
    experience, answers, steps = sample_recorded(it, **to_sample(upstream))
    first = [answer[:1] for answer in answers]
    assert off_policy(experience, first, steps) > 0.1


@pytest.mark.generations("G3", "G4")
@pytest.mark.parametrize("stops", [[[5, 6]], [[3], [6, 5], [4, 4, 4]], [[2, 2]]], ids=str)
def test_stop_sequences_end_an_answer_where_they_end_the_sampler(on, stops):
    it = small_scene(pad="eos")
    for seed in range(4):
        experience, answers, steps = sample_recorded(
            it, [END, *stops], seed=seed, stop_token_ids=stops
        )
        assert_frame(experience, SMALL_PROMPTS, answers, END[0])
        assert len(steps) == max(map(len, answers))  # and no longer than that
        assert off_policy(experience, answers, steps) <= TOLERANCES["action_log_probs"]


@pytest.mark.generations("G3")
def test_unpatched_upstream_writes_stop_tokens_over_an_answer_it_cuts_off(upstream):
    it = scene()
    with pytest.raises(AssertionError):
        assert_stored_as_drawn(it, **to_sample(upstream))
    with coati_ext.applied():
        assert_stored_as_drawn(it)


def assert_stored_as_drawn(it, **given):
    experience, answers, _ = sample_recorded(it, room=3, stop_token_ids=[40, 41], **given)
    assert [len(answer) for answer in answers] == [3, 3, 3]  # the seed draws no end token
    assert answers_in(experience).tolist() == answers


# --- what ends an answer -----------------------------------------------------------------------

SCRIPT = [[20, 21, 22, 23, 2, 50], [2, 21, 40, 41, 42, 43], [40, 41, 42, 43, 44, 45]]


@pytest.mark.generations("G3", "G4")
@pytest.mark.parametrize(
    ("stop_token_ids", "lengths"),
    [
        (21, [2, 1, 6]),
        ([21], [2, 1, 6]),
        ([21, 22], [3, 1, 6]),
        ((21, 22), [3, 1, 6]),
        ([[23], [21, 22], [43, 44]], [3, 1, 5]),
        ([(23,), (21, 22)], [3, 1, 6]),
        ([[], [22]], [3, 1, 6]),
        ([41, 40], [5, 1, 6]),
        ([7, 20], [1, 1, 6]),  # begins in the first prompt
        ([2], [5, 1, 6]),
        (None, [5, 1, 6]),
        ([], [5, 1, 6]),
        ([[]], [5, 1, 6]),
    ],
    ids=str,
)
def test_an_answer_ends_with_the_first_stop_or_end_token(on, stop_token_ids, lengths):
    """The token after it is masked; an answer without one is all actions."""
    prompts = PROMPTS[:3]
    experience = scene().roll(SCRIPT, prompts=prompts, stop_token_ids=stop_token_ids)
    assert_frame(experience, prompts, [row[:n] for row, n in zip(SCRIPT, lengths)], 0)


@pytest.mark.generations("G3", "G4")
@pytest.mark.parametrize("bad", ["</s>", 2.0, [2, "x"], [[2], [None]], {"eos": 2}], ids=repr)
def test_a_stop_that_is_none_is_named(on, bad):
    with pytest.raises(ValueError, match=re.escape(f"stop_token_ids = {bad!r}")):
        scene().roll(stop_token_ids=bad)


@pytest.mark.generations("G4")
def test_unpatched_upstream_needs_stops_and_answers_whose_defaults_are_none(upstream):
    it = scene()
    with pytest.raises(TypeError, match="not subscriptable"):
        it.roll(stop_token_ids=None, **needed(upstream))
    with pytest.raises(TypeError, match="not subscriptable"):
        it.roll()


@pytest.mark.generations("G3")
def test_unpatched_upstream_fails_without_stops_where_an_answer_is_cut_off(upstream):
    it = scene()
    ids, mask = padded(PROMPTS, "left")
    with pytest.raises(TypeError):
        it.play(ids, mask, max_length=LONGEST, stop_token_ids=None, **to_sample(upstream))
    with coati_ext.applied():
        it.play(ids, mask, max_length=LONGEST, stop_token_ids=None)


# --- how long answers may be -------------------------------------------------------------------


def test_an_answer_that_is_cut_off_is_all_actions(on):
    """And the columns that upstream fills up to `max_length` are none."""
    it = scene()
    ids, mask = padded(PROMPTS, "left")
    experience = it.play(ids, mask, max_length=LONGEST, max_new_tokens=3, top_k=1)
    expected = [greedy(it.models.actor, prompt, 3) for prompt in PROMPTS]
    assert_frame(experience, PROMPTS, expected, 0)


@pytest.mark.generations("G4")
def test_unpatched_upstream_takes_pads_for_actions_of_an_answer_that_is_cut_off(upstream):
    it = scene()
    ids, mask = padded(PROMPTS, "left")
    given = {"max_length": LONGEST, "max_new_tokens": 3, "top_k": 1, **to_sample(upstream)}
    assert it.play(ids, mask, **given).action_mask.sum(dim=1).max() > 3


@pytest.mark.parametrize("max_new_tokens", [None, 4, 100])
def test_columns_of_pads_leave_room_for_an_answer(on, max_new_tokens):
    it = scene()
    room = WIDTH - max(map(len, PROMPTS))
    for layout in LAYOUTS:
        ids, mask = padded(PROMPTS, layout)
        experience = it.play(ids, mask, max_length=WIDTH, max_new_tokens=max_new_tokens, top_k=1)
        expected = [greedy(it.models.actor, prompt, room) for prompt in PROMPTS]
        assert_frame(experience, PROMPTS, expected, 0)


def test_unpatched_upstream_fails_where_prompts_are_as_wide_as_may_be(upstream):
    it = scene()
    ids, mask = padded(PROMPTS, "left")
    with pytest.raises((RuntimeError, AssertionError)):
        it.play(ids, mask, max_length=WIDTH, **to_sample(upstream))


def test_more_new_tokens_than_there_is_room_for_are_as_many_as_there_is(on):
    it = scene()
    ids, mask = padded(PROMPTS, "left")
    experience = it.play(ids, mask, max_length=LONGEST, max_new_tokens=100, top_k=1)
    room = LONGEST - max(map(len, PROMPTS))
    expected = [greedy(it.models.actor, prompt, room) for prompt in PROMPTS]
    assert_frame(experience, PROMPTS, expected, 0)


@pytest.mark.generations("G3", "G4")
def test_unpatched_upstream_then_takes_nothing_but_pads_for_actions(upstream):
    it = scene()
    ids, mask = padded(PROMPTS, "left")
    given = {"max_length": LONGEST, "max_new_tokens": 100, **to_sample(upstream)}
    experience = it.play(ids, mask, **given)
    assert experience.action_mask.any()
    assert not answers_in(experience).any()


def test_prompts_that_leave_no_room_give_no_action_and_a_finite_step(on):
    it = scene()
    ids, mask = pad_rows(PROMPTS, pad_token_id=0, side="left")
    with cpu_only():
        trainer = ppo_trainer(it.models, tokenizer=it.tokenizer)
        with pytest.warns(UserWarning, match="the longest has 8 tokens and max_length is 8"):
            experience = make_experience(
                trainer.experience_maker, ids, mask, tokenizer=it.tokenizer, max_length=8
            )
        assert_frame(experience, PROMPTS, [[]] * len(PROMPTS), 0)
        for name in TOLERANCES:
            assert getattr(experience, name, torch.zeros(())).isfinite().all(), name
        trainer.writer = None
        training_step(trainer, experience)
    for model in (it.models.actor, it.models.critic):
        assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_max_length_is_needed_and_named(on):
    it = scene()
    ids, mask = padded(PROMPTS, "left")
    with pytest.raises(ValueError, match="max_length"):
        make_experience(it.maker, ids, mask, tokenizer=it.tokenizer)


# --- random numbers and chunks -----------------------------------------------------------------


def rollouts(it, *seeds, **given):
    """The sequences sampled after each seed, and the global random number that follows."""
    ids, mask = padded(PROMPTS, "left")
    made = []
    for seed in seeds:
        torch.manual_seed(seed)
        sequences = it.play(ids, mask, max_length=LONGEST, **given).sequences
        made.append((sequences.tolist(), float(torch.rand(()))))
    return made


def test_rollouts_differ_and_a_users_seed_reproduces_them(on):
    it = scene()
    first, second, again = rollouts(it, 0, 1, 0)
    assert first == again
    assert first[0] != second[0]
    assert first[1] != second[1]
    ids, mask = padded(PROMPTS, "left")
    one, two = (it.play(ids, mask, max_length=LONGEST).sequences for _ in range(2))
    assert one.tolist() != two.tolist()


@pytest.mark.generations("G3", "G4")
def test_unpatched_upstream_samples_the_same_whatever_the_seed(upstream):
    first, *others = rollouts(scene(), 0, 1, 2, **to_sample(upstream))
    assert all(other == first for other in others)


@pytest.mark.generations("G4")
def test_chunks_of_any_width_are_one_experience_in_order(on):
    it = scene(inference_batch_size=2)
    actor = it.models.actor
    stops = [greedy(actor, prompt, 1) for prompt in PROMPTS[:2]]  # the first chunk ends at once
    expected = [greedy(actor, prompt, ROOM, [END, *stops]) for prompt in PROMPTS]
    assert {len(answer) for answer in expected} == {1, ROOM}
    ids, mask = padded(PROMPTS, "both")
    experience = it.play(ids, mask, max_length=LONGEST, top_k=1, stop_token_ids=stops)
    assert_frame(experience, PROMPTS, expected, 0)


@pytest.mark.generations("G4")
def test_unpatched_v048_repeats_rows_of_later_chunks(upstream):
    maker = import_module("coati.experience_maker").NaiveExperienceMaker
    if "(inference_mini_batch_id + 1)" not in inspect.getsource(maker.make_experience):
        pytest.skip("only v0.4.8 cuts its chunks wrongly")
    it = scene(inference_batch_size=2)
    ids, mask = padded(PROMPTS, "left")
    experience = it.play(ids, mask, max_length=LONGEST, **to_sample(upstream))
    assert experience.sequences.size(0) > len(PROMPTS)


@pytest.mark.generations("G3", "G4")
@pytest.mark.parametrize("prompt", [[1, 2, 7], [1, 9, 2, 5, 2, 7]], ids=len)
def test_an_end_token_in_a_prompt_does_not_end_its_answer(on, prompt):
    """Such as that of an earlier turn, be the batch smaller than the prompt is long or larger."""
    it = scene()
    for rows in (1, 4):
        ids, mask = torch.tensor([prompt] * rows), torch.ones(rows, len(prompt))
        experience = it.play(ids, mask, max_length=len(prompt) + 4, top_k=1, stop_token_ids=[63])
        expected = greedy(it.models.actor, prompt, 4, [END, [63]])
        assert len(expected) == 4
        assert_frame(experience, [prompt] * rows, [expected] * rows, 0)


@pytest.mark.generations("G3", "G4")
def test_sampling_goes_no_further_than_the_last_answer_of_a_large_batch(on):
    it = scene()
    prompt = [1, 5]
    (stop,) = greedy(it.models.actor, prompt, 1)
    ids, mask = torch.tensor([prompt] * 6), torch.ones(6, 2)
    with recorded() as steps:
        it.play(ids, mask, max_length=12, top_k=1, stop_token_ids=[stop])
    assert len(steps) == 1


def test_a_users_preparation_of_a_step_is_the_one_that_is_used(on):
    it = scene()
    ids, mask = padded(PROMPTS, "left")
    theirs, used = network(it.models.actor).prepare_inputs_for_generation, []

    def mine(*args, **kwargs):
        used.append(args)
        return theirs(*args, **kwargs)

    experience = it.play(ids, mask, max_length=LONGEST, top_k=1, prepare_inputs_fn=mine)
    assert used
    expected = [greedy(it.models.actor, prompt, ROOM) for prompt in PROMPTS]
    assert_frame(experience, PROMPTS, expected, 0)


def test_nothing_is_added_for_an_actor_without_preparation_of_its_own():
    from coati_ext.patches.rollout.sampler import _add_generation_functions

    given = {}
    _add_generation_functions(torch.nn.Linear(1, 1), torch.ones(1, 3), given)
    assert given == {}
