"""The public test kit: it can fail, and says what failed."""

from __future__ import annotations

import sys

import pytest
import torch

from coati_ext import testing
from coati_ext.patching.patch import GENERATIONS
from coati_ext.patching.source import generation_of
from coati_ext.testing import (
    assert_batch_invariant,
    assert_matches_sequence_classification,
    assert_padding_invariant,
    chosen_rows,
    families,
    layouts,
    pair_accuracy,
    preference_pairs,
    random_rows,
    standin,
    tiny_config,
    tiny_reward_model,
    tiny_tokenizer,
    train_reward_model,
)


def last_token(ids, mask):
    """A perfect scorer: the last real token and how many there are."""
    last = (mask * torch.arange(1, mask.size(1) + 1)).argmax(dim=1, keepdim=True)
    return ids.gather(1, last).squeeze(1) + 0.1 * mask.sum(dim=1)


def counts_columns(ids, mask):
    return last_token(ids, mask) + ids.size(1)


def leans_on_the_first_row(ids, mask):
    return last_token(ids, mask) + last_token(ids, mask)[0]


def test_a_good_scorer_passes():
    assert_padding_invariant(last_token)
    assert_batch_invariant(last_token)


def test_a_scorer_that_sees_the_padding_is_told_with_layout_row_values_and_mask():
    with pytest.raises(AssertionError) as error:
        assert_padding_invariant(counts_columns, rows=[[5, 2], [6, 7, 2]])
    text = str(error.value)
    assert "layout left, row 0" in text
    assert "alone" in text
    assert "mask 00000000011" in text


def test_a_scorer_that_sees_its_batch_is_told():
    with pytest.raises(AssertionError):
        assert_batch_invariant(leans_on_the_first_row)


def test_hugging_faces_head_is_an_independent_judge(upstream):
    model = tiny_reward_model("gpt2")
    if upstream.generation == "G1":  # upstream's mean over columns is not what that head reads
        with pytest.raises(AssertionError):
            assert_matches_sequence_classification(model, only=())
    else:
        assert_matches_sequence_classification(model, only=())


def test_layouts_hold_the_same_rows():
    rows = random_rows((1, 4, 9))
    names = []
    for name, ids, mask in layouts(rows, pad_token_id=0):
        names.append(name)
        assert [ids[i][mask[i].bool()].tolist() for i in range(len(rows))] == rows
    assert names == ["left", "right", "both", "interior"]
    with pytest.raises(ValueError, match="a row of 9 tokens does not fit in 5 columns"):
        list(layouts(rows, pad_token_id=0, width=5))


@pytest.mark.parametrize("generation", GENERATIONS)
def test_stand_ins_have_their_generations_structure(generation):
    assert generation_of(standin(generation) / "coati") == generation


def test_unknown_names_are_told_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean G2"):
        standin("g2")
    with pytest.raises(ValueError, match="gpt3"):
        tiny_config("gpt3")
    with pytest.raises(ValueError, match="pad must be"):
        tiny_tokenizer(pad="unk")


def test_the_tokenizer():
    tokenizer = tiny_tokenizer(pad="eos", bos=True)
    word = tokenizer.convert_ids_to_tokens(9)
    batch = tokenizer([f"{word} {word}<eos>", word], padding=True, return_tensors="pt")
    assert batch["input_ids"].tolist() == [[1, 9, 9, 2], [1, 9, 2, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]


def test_preference_data_has_the_lengths_of_real_conversations():
    pairs = preference_pairs(400, seed=1)
    prompts = [len(pair["prompt"].split()) for pair in pairs]
    answers = [len(pair["chosen"].split()) for pair in pairs]
    assert 80 < sum(prompts) / 400 < 130
    assert 55 < sum(answers) / 400 < 90
    assert preference_pairs(3, seed=1) == pairs[:3] or len(preference_pairs(3, seed=1)) == 3
    assert preference_pairs(400, seed=1) == pairs


@pytest.mark.slow
@pytest.mark.once(why="each step and loss is compared on every stack; this adds them up")
@pytest.mark.enough("G2", "G4", why="G1 and G3 learn by the loops and losses of G2 and G4")
def test_upstreams_trainer_learns_the_planted_preference(upstream):
    import coati_ext

    tokenizer = tiny_tokenizer(pad="eos")
    pairs = preference_pairs(300, seed=0)
    with coati_ext.applied():
        model = tiny_reward_model("gpt2", layers=1)
        before = pair_accuracy(model, pairs[:100], tokenizer=tokenizer, max_length=192)
        train_reward_model(
            model, pairs[100:], tokenizer=tokenizer, batch_size=8, max_length=192, epochs=2
        )
        after = pair_accuracy(model, pairs[:100], tokenizer=tokenizer, max_length=192)
        right = pair_accuracy(model, pairs[:100], tokenizer=tokenizer, max_length=192, side="left")
    assert after == right  # right-padded and left-padded rows are one and the same
    assert after > max(before, 0.6)


def test_rows_as_the_data_path_makes_them(upstream):
    tokenizer = tiny_tokenizer()
    rows = chosen_rows(preference_pairs(4), tokenizer=tokenizer, max_length=512)
    assert len(rows) == 4
    assert all(int(ids[mask][-1]) == tokenizer.eos_token_id for ids, mask in rows)


def test_families_have_tiny_models(upstream):
    assert {"gpt2", "opt", "bloom", "llama"} <= set(families())
    for family in families():
        rewards = tiny_reward_model(family)(torch.randint(4, 60, (9, 6)), torch.ones(9, 6).long())
        assert rewards.shape == (9,)


def test_a_wrong_name_is_told_with_the_nearest():
    with pytest.raises(ValueError, match=r"unknown model family 'gtp2', only .*mean gpt2\?"):
        tiny_config("gtp2")
    with pytest.raises(ValueError, match=r"no layout lft, only .*did you mean left\?"):
        assert_padding_invariant(last_token, only=["lft"])


def test_importing_the_kit_imports_no_torch(bare_python):
    script = "import sys, coati_ext.testing; assert 'torch' not in sys.modules"
    bare_python("-c", script)


def test_every_public_name_is_there():
    for name in testing.__all__:
        assert getattr(testing, name) is not None
    assert "torch" in sys.modules
