"""One left-padded frame from the data paths, whose end token survives."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader

import coati_ext
from coati_ext.testing import cpu_only, tiny_tokenizer
from helpers.processes import server

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


def preference_loader(tokenizer, data=PAIRS, wrap=lambda collate: collate, **given):
    from coati.dataset import DataCollatorForPreferenceDataset

    collate = wrap(DataCollatorForPreferenceDataset(tokenizer=tokenizer, max_length=8))
    return DataLoader(data, batch_size=len(data), collate_fn=collate, **given)


def reward_trainer(train, evaluate=None):
    """A trainer of reward models, as far as it concerns its loaders."""
    from coati.trainer import RewardModelTrainer

    trainer = RewardModelTrainer.__new__(RewardModelTrainer)
    trainer._before_fit(train, evaluate)
    return trainer


def only_batch(loader):
    (batch,) = loader
    return batch


def check_preferences(batch, tokenizer):
    """The rows of ``PAIRS`` left-padded to 8 columns, cut at their heads."""
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


@G34
def test_the_rows_of_reward_model_training(on, side, pad):
    tokenizer = tiny_tokenizer(pad=pad, padding_side=side)
    given = json.loads(json.dumps(PAIRS))
    trainer = reward_trainer(*(preference_loader(tokenizer, given) for _ in range(2)))
    for loader in (trainer.train_dataloader, trainer.eval_dataloader):
        check_preferences(only_batch(loader), tokenizer)
    assert given == PAIRS
    assert (tokenizer.padding_side, tokenizer.truncation_side) == (side, "right")


class Marked:
    """A user's collate function, which adds something to the batch and patches its process."""

    def __init__(self, collate):
        self.collate = collate

    def __call__(self, instances):
        with coati_ext.applied():
            return {**self.collate(instances), "process": os.getpid()}


@G34
@pytest.mark.parametrize(
    "wrap",
    [
        functools.partial,
        lambda collate: lambda instances: collate(instances),
        lambda collate: collate.__call__,
        Marked,
    ],
)
def test_the_rows_of_reward_model_training_however_the_collator_is_called(on, wrap):
    tokenizer = tiny_tokenizer()
    loader = preference_loader(tokenizer, wrap=wrap)
    check_preferences(only_batch(reward_trainer(loader).train_dataloader), tokenizer)


@G34
@pytest.mark.once("a worker is a process of torch's on every stack")
@pytest.mark.enough("G4", why="the loaders are torch's in each generation")
def test_the_rows_of_reward_model_training_that_a_worker_collates(on):
    """One that was not forked from this process, and that has read a batch before."""
    tokenizer = tiny_tokenizer()
    workers = {"num_workers": 1, "multiprocessing_context": server(), "persistent_workers": True}
    loader = preference_loader(tokenizer, wrap=Marked, **workers)
    before = only_batch(loader)
    batch = only_batch(reward_trainer(loader).train_dataloader)
    check_preferences(batch, tokenizer)
    after = only_batch(loader)
    assert os.getpid() not in (before["process"], batch["process"])
    assert after["process"] == before["process"] != batch["process"]
    assert all(after[key].equal(item) for key, item in before.items() if key != "process")


@G34
def test_only_the_trainer_of_reward_models_gets_other_rows(upstream, side):
    """Who calls the collator, or reads the loader before, between or after, gets upstream's."""
    tokenizer = tiny_tokenizer(padding_side=side)

    def read():
        loader = preference_loader(tokenizer)
        first = only_batch(loader)
        only_batch(reward_trainer(loader).train_dataloader)
        return [first, only_batch(loader), loader.collate_fn(PAIRS)]

    before = read()
    with coati_ext.applied():
        after = read()
    assert all(old[key].equal(new[key]) for old, new in zip(before, after) for key in old)


@G34
def test_the_loaders_of_a_trainer_read_in_the_same_order(upstream):
    """They share sampler and generator with those that it was given."""

    def rows():
        loader = DataLoader(
            list(range(64)),
            batch_size=4,
            shuffle=True,
            collate_fn=list,
            generator=torch.Generator().manual_seed(3),
        )
        first = next(iter(loader))
        trainer = reward_trainer(loader)
        assert len(trainer.train_dataloader) == len(loader)
        return [first, *trainer.train_dataloader, *trainer.train_dataloader]

    before = rows()
    with coati_ext.applied():
        assert rows() == before


@G34
def test_batches_that_no_loader_collates_are_told(on):
    with pytest.warns(UserWarning, match="the batches of a list: rows longer than max_length"):
        trainer = reward_trainer([{}])
    assert trainer.train_dataloader == [{}]


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
    from coati.dataset import DataCollatorForPromptDataset

    with pytest.raises(ValueError, match="row 1 of the batch has no token"):
        DataCollatorForPromptDataset(tiny_tokenizer(), 8)([{"input_ids": [5]}, {"input_ids": []}])
    loader = preference_loader(tiny_tokenizer(), [preference([], [5, 2], prompt=0)])
    with pytest.raises(ValueError, match="row 0 of the batch has no token"):
        only_batch(reward_trainer(loader).train_dataloader)


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
