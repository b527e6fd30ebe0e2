"""One left-padded frame from the data paths, whose end token survives."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import coati_ext
from coati_ext.testing import cpu_only, tiny_tokenizer

G12 = pytest.mark.generations("G1", "G2")
G34 = pytest.mark.generations("G3", "G4")


@pytest.fixture(params=["right", "left"])
def side(request):
    return request.param


@pytest.fixture(params=["pad", "eos"])
def pad(request):
    return request.param


WORDS = tiny_tokenizer().convert_ids_to_tokens(list(range(4, 24)))


def text(length, start=0):
    return " ".join((WORDS * 9)[start : start + length])


def expected_row(ids, width, pad_id):
    return [pad_id] * (width - len(ids)) + ids, [0] * (width - len(ids)) + [1] * len(ids)


def check_row(ids, mask, real, width, pad_id):
    row, kept = expected_row(real, width, pad_id)
    assert ids.view(-1).tolist() == row
    assert mask.view(-1).long().tolist() == kept


@G12
@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("name", ["RmStaticDataset", "HhRlhfDataset"])
def test_reward_datasets(on, name, side, pad, bos):
    import coati.dataset

    tokenizer = tiny_tokenizer(pad=pad, padding_side=side, bos=bos)
    width, head = 12, [1] if bos else []
    pairs = [
        {"prompt": text(p) + " ", "chosen": text(c, 3) + " ", "rejected": text(r, 5) + " "}
        for p, c, r in [(3, 4, 2), (9, 9, 1), (1, 30, 20)]
    ]
    if name == "HhRlhfDataset":
        for pair in pairs:
            prompt = pair.pop("prompt")
            pair["chosen"], pair["rejected"] = prompt + pair["chosen"], prompt + pair["rejected"]
    dataset = getattr(coati.dataset, name)(dataset=pairs, tokenizer=tokenizer, max_length=width)
    assert len(dataset) == len(pairs)
    for pair, item in zip(pairs, [dataset[i] for i in range(len(pairs))]):
        for answer, (ids, mask) in {"chosen": item[:2], "rejected": item[2:]}.items():
            words = tokenizer.convert_tokens_to_ids((pair.get("prompt", "") + pair[answer]).split())
            real = [*words, tokenizer.eos_token_id]
            real = head + real[-(width - len(head)) :]
            check_row(ids, mask, real, width, tokenizer.pad_token_id)
    assert (tokenizer.padding_side, tokenizer.truncation_side) == (side, "right")


@G12
def test_slow_tokenizers_as_the_scripts_use_them(on, tmp_path):
    from coati.dataset import RmStaticDataset
    from transformers import GPT2Tokenizer

    letters = ["<eos>", *"abcdefghijklmnopqrstuvwxyz"]
    (tmp_path / "vocab.json").write_text(json.dumps({c: i for i, c in enumerate(letters)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = GPT2Tokenizer(
        str(tmp_path / "vocab.json"),
        str(tmp_path / "merges.txt"),
        unk_token="<eos>",
        bos_token="<eos>",
        eos_token="<eos>",
        pad_token="<eos>",
    )
    if hasattr(tokenizer, "sanitize_special_tokens"):  # as from_pretrained does in old versions
        tokenizer.sanitize_special_tokens()
    pairs = [{"prompt": "abcdefg", "chosen": "hij", "rejected": "k"}]
    ids, mask, other, other_mask = RmStaticDataset(pairs, tokenizer, 9)[0]
    check_row(ids, mask, [3, 4, 5, 6, 7, 8, 9, 10, 0], 9, 0)
    check_row(other, other_mask, [1, 2, 3, 4, 5, 6, 7, 11, 0], 9, 0)
    _, _, other, other_mask = RmStaticDataset(pairs, tokenizer, 12)[0]
    check_row(other, other_mask, [1, 2, 3, 4, 5, 6, 7, 11, 0], 12, 0)


@G12
def test_the_special_token_of_a_reward_dataset_survives(on):
    from coati.dataset import RmStaticDataset

    tokenizer = tiny_tokenizer()
    pairs = [{"prompt": text(9) + " ", "chosen": text(3) + " ", "rejected": text(2) + " "}]
    ids, mask, *_ = RmStaticDataset(pairs, tokenizer, 6, WORDS[-1])[0]
    assert ids.view(-1)[-1] == tokenizer.convert_tokens_to_ids(WORDS[-1])
    assert mask.view(-1)[-1] == 1


@G12
def test_prompt_datasets_keep_the_end_of_the_prompt(on, side, pad):
    from coati.dataset import PromptDataset

    tokenizer = tiny_tokenizer(pad=pad, padding_side=side)
    prompts = [text(3), text(30)]
    Path("prompts.json").write_text(json.dumps([{"instruction": prompt} for prompt in prompts]))
    with cpu_only():
        dataset = PromptDataset("prompts.json", tokenizer, max_length=10)
        for prompt, item in zip(prompts, [dataset[0], dataset[1]]):
            real = tokenizer.convert_tokens_to_ids(prompt.split())[-10:]
            check_row(item["input_ids"], item["attention_mask"], real, 10, tokenizer.pad_token_id)


@G12
def test_a_tokenizer_gets_its_sides_back_after_an_error(on):
    from coati.dataset import RmStaticDataset

    tokenizer = tiny_tokenizer()
    with pytest.raises(KeyError):
        RmStaticDataset([{"chosen": ""}], tokenizer, 8)
    assert (tokenizer.padding_side, tokenizer.truncation_side) == ("right", "right")


def test_a_tokenizer_without_sides_is_refused_by_name(on):
    from coati_ext.patches.left_padding.tokenizers import left_sided

    with pytest.raises(TypeError, match=r"object cannot pad or cut at the head"), left_sided(
        object()
    ):
        pass


def preference(chosen, rejected, prompt=1):
    def part(ids):
        return ids, [0] * prompt + [1] * (len(ids) - prompt)

    ids, mask = part(chosen)
    other, other_mask = part(rejected)
    return {
        "chosen_input_ids": ids,
        "chosen_loss_mask": mask,
        "rejected_input_ids": other,
        "rejected_loss_mask": other_mask,
    }


PAIRS = [
    preference([1, 5, 6, 2], [1, 5, 7, 8, 9, 2]),
    preference([1, *range(5, 20), 2], [5, *range(6, 30), 2]),
]


@G34
def test_preference_collator(on, side, pad):
    from coati.dataset import DataCollatorForPreferenceDataset

    tokenizer = tiny_tokenizer(pad=pad, padding_side=side)
    given = json.loads(json.dumps(PAIRS))
    batch = DataCollatorForPreferenceDataset(tokenizer=tokenizer, max_length=8)(given)
    kept = {
        "chosen": [[1, 5, 6, 2], [1, 14, 15, 16, 17, 18, 19, 2]],
        "reject": [[1, 5, 7, 8, 9, 2], [23, 24, 25, 26, 27, 28, 29, 2]],
    }
    for answer, rows in kept.items():
        assert batch[f"{answer}_attention_mask"].dtype == torch.bool
        for index, real in enumerate(rows):
            ids, mask = (
                batch[f"{answer}_input_ids"][index],
                batch[f"{answer}_attention_mask"][index],
            )
            check_row(ids, mask, real, 8, tokenizer.pad_token_id)
        assert batch[f"{answer}_loss_mask"].shape == batch[f"{answer}_input_ids"].shape
        # The first row is whole: only its prompt, one token, is without loss.
        real = len(rows[0])
        assert batch[f"{answer}_loss_mask"][0].long().tolist() == [0] * (9 - real) + [1] * (
            real - 1
        )
    assert given == PAIRS
    assert (tokenizer.padding_side, tokenizer.truncation_side) == (side, "right")


@G34
def test_prompt_collator(on, side, pad):
    from coati.dataset import DataCollatorForPromptDataset

    tokenizer = tiny_tokenizer(pad=pad, padding_side=side)
    prompts = [[1, 5, 2, 6, 2], [5, 2], [1, *range(5, 30)]]
    instances = [{"input_ids": ids, "gt_answer": str(i)} for i, ids in enumerate(prompts)]
    batch = DataCollatorForPromptDataset(tokenizer=tokenizer, max_length=8)(instances)
    for index, real in enumerate([prompts[0], prompts[1], [1, *range(23, 30)]]):
        check_row(
            batch["input_ids"][index],
            batch["attention_mask"][index],
            real,
            8,
            tokenizer.pad_token_id,
        )
    assert batch["attention_mask"].dtype == torch.bool
    if on.generation == "G4":
        assert batch["gt_answer"] == ["0", "1", "2"]


@G34
def test_an_empty_row_is_named(on):
    from coati.dataset import DataCollatorForPreferenceDataset, DataCollatorForPromptDataset

    with pytest.raises(ValueError, match="row 1 of the batch has no token"):
        DataCollatorForPromptDataset(tiny_tokenizer(), 8)([{"input_ids": [5]}, {"input_ids": []}])
    with pytest.raises(ValueError, match="row 0 of the batch has no token"):
        DataCollatorForPreferenceDataset(tiny_tokenizer(), 8)([preference([], [5, 2], prompt=0)])


@G34
@pytest.mark.parametrize("trainer", ["DPOTrainer", "ORPOTrainer"])
def test_dpo_and_orpo_batches_do_not_change(upstream, trainer, side):
    """The collator is shared with the reward model; a trainer of actors keeps upstream's rows."""
    import coati.dataset
    import coati.trainer
    from torch.utils.data import DataLoader

    if not hasattr(coati.trainer, trainer):
        pytest.skip(f"this release has no {trainer}")
    cls = getattr(coati.trainer, trainer)

    def batches():
        tokenizer = tiny_tokenizer(padding_side=side)
        collator = coati.dataset.DataCollatorForPreferenceDataset(tokenizer, max_length=8)
        loader = DataLoader(PAIRS, batch_size=2, collate_fn=collator)
        trainer = cls.__new__(cls)
        trainer.plugin = None
        cls._before_fit(
            trainer, train_preference_dataloader=loader, eval_preference_dataloader=None
        )
        return next(iter(trainer.train_dataloader))

    before = batches()
    with coati_ext.applied():
        after = batches()
    assert before.keys() == after.keys()
    assert all(before[key].equal(after[key]) for key in before)


@G34
def test_kto_and_sft_batches_do_not_change(upstream, side):
    import coati.dataset

    tokenizer = tiny_tokenizer(padding_side=side)

    def batches():
        found = [
            coati.dataset.DataCollatorForSupervisedDataset(tokenizer, 8)(
                [{"input_ids": [5, 6, 2], "labels": [5, 6, 2]}, {"input_ids": [7], "labels": [7]}]
            )
        ]
        if hasattr(coati.dataset, "DataCollatorForKTODataset"):
            rows = [{"prompt": [5, 6], "completion": [7, 2], "label": True}] * 2
            found.append(coati.dataset.DataCollatorForKTODataset(tokenizer, 8)(rows))
        return found

    before = batches()
    with coati_ext.applied():
        after = batches()
    for old, new in zip(before, after):
        assert all(old[key].equal(new[key]) for key in old)


@G34
@pytest.mark.parametrize(
    ("width", "kept"),
    [(1, [2]), (2, [128000, 2]), (3, [128000, 7, 2]), (5, [128000, 5, 6, 7, 2])],
)
def test_a_cut_row_keeps_its_first_token_if_that_is_bos_and_there_is_room(on, width, kept):
    """BOS as in Llama 3, whose id is no small number."""
    from coati.dataset import DataCollatorForPromptDataset

    ids, bos = json.loads("[[128000, 5, 6, 7, 2], 128000]")
    tokenizer = SimpleNamespace(
        bos_token_id=bos, pad_token_id=0, padding_side="right", truncation_side="right"
    )
    batch = DataCollatorForPromptDataset(tokenizer, width)([{"input_ids": ids, "gt_answer": ""}])
    check_row(batch["input_ids"], batch["attention_mask"], kept, width, 0)
    tokenizer.bos_token_id = 9
    batch = DataCollatorForPromptDataset(tokenizer, width)([{"input_ids": ids, "gt_answer": ""}])
    check_row(batch["input_ids"], batch["attention_mask"], ids[-width:], width, 0)
