"""Left-padded rows whose end token survives, from every reward-model and prompt data path.

Upstream pads on the side that the tokenizer happens to have; it cuts long rows at their end, which
loses the end token of an answer and the assistant header of a prompt; and it masks prompts by
``ids != pad``, which loses real tokens when ``pad == eos``. Here rows are left-padded whatever the
tokenizer says, cut at their head, and masked by their lengths. Upstream's own tokenizing and
collating code still does the work. DPO and ORPO share the preference collator with the reward
model; they train an actor, which is given no position ids, so they keep upstream's layout.
"""

from __future__ import annotations

from contextlib import contextmanager
from inspect import signature
from typing import Any, Callable, Dict, Iterator, List, Sequence

from coati_ext import Defect, Patch, Site, hookimpl

_UPSTREAM_LAYOUT = "coati_ext_upstream_layout"


@contextmanager
def _left_sided(tokenizer: Any) -> Iterator[None]:
    """Let a Hugging Face tokenizer pad and truncate at the head for a while."""
    names = ("padding_side", "truncation_side")
    if not all(hasattr(tokenizer, name) for name in names):
        raise TypeError(
            f"{type(tokenizer).__name__} cannot pad or cut at the head: expected a Hugging Face "
            f"tokenizer with {' and '.join(names)}"
        )
    sides = {name: getattr(tokenizer, name) for name in names}
    try:
        for name in sides:
            setattr(tokenizer, name, "left")
        yield
    finally:
        for name, side in sides.items():
            setattr(tokenizer, name, side)


def tokenize_left(original: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """Build a G1 or G2 dataset while its tokenizer is left-sided."""
    with _left_sided(signature(original).bind(*args, **kwargs).arguments["tokenizer"]):
        original(*args, **kwargs)


def collate_preferences(
    original: Callable[..., Any], self: Any, instances: Sequence[Dict[str, Any]]
) -> Any:
    """Collate G3/G4 pairs into left-padded rows of ``max_length`` that end in their end token."""
    if getattr(self, _UPSTREAM_LAYOUT, False):
        return original(self, instances)
    rows = [dict(instance) for instance in instances]
    for answer in ("chosen", "rejected"):
        for index, row in enumerate(rows):
            ids = row[f"{answer}_input_ids"]
            for key in (f"{answer}_loss_mask", f"{answer}_input_ids"):
                row[key] = _cut(row[key], ids, index, self)
    with _left_sided(self.tokenizer):
        return original(self, rows)


def collate_prompts(
    original: Callable[..., Any], self: Any, instances: Sequence[Dict[str, Any]]
) -> Any:
    """Collate G3/G4 prompts into left-padded rows of ``max_length``, masked by their lengths."""
    import torch

    rows = [
        {**instance, "input_ids": _cut(instance["input_ids"], instance["input_ids"], index, self)}
        for index, instance in enumerate(instances)
    ]
    with _left_sided(self.tokenizer):
        batch = original(self, rows)
    lengths = torch.tensor([[len(row["input_ids"])] for row in rows])
    width = batch["input_ids"].size(1)
    batch["attention_mask"] = torch.arange(width) >= width - lengths
    return batch


def keep_upstream_layout(
    original: Callable[..., None], self: Any, *args: Any, **kwargs: Any
) -> None:
    """Let the preference collators of a DPO or ORPO trainer's loaders work as upstream's."""
    from coati.dataset import DataCollatorForPreferenceDataset

    for loader in (*args, *kwargs.values()):
        collator = getattr(loader, "collate_fn", None)
        if isinstance(collator, DataCollatorForPreferenceDataset):
            setattr(collator, _UPSTREAM_LAYOUT, True)
    original(self, *args, **kwargs)


def _cut(values: Sequence[Any], ids: Sequence[int], row: int, collator: Any) -> List[Any]:
    """The values of a row's tokens that fit into ``max_length``: its end, and BOS if it has one."""
    if len(ids) == 0:
        raise ValueError(f"row {row} of the batch has no token: expected at least one")
    width = collator.max_length
    values = list(values)
    if len(ids) <= width:
        return values
    head = 1 if ids[0] == collator.tokenizer.bos_token_id and width > 1 else 0
    return values[:head] + values[len(values) - (width - head) :]


@hookimpl
def register_patches(register: Callable[[Patch], None]) -> None:
    """Declare the patch."""
    register(
        Patch(
            name="left_padding",
            summary="one left-padded frame: rows cut at their head, ending in their end token",
            default=True,
            changes=(
                "Rows come left-padded. Rows longer than max_length keep their end and lose their "
                "head (BOS stays). With pad == eos, G3 and G4 prompts keep their real eos tokens. "
                "DPO, ORPO and KTO batches do not change."
            ),
            reference="ColossalAI #4475, #3235, #4125",
            sites=(
                *(
                    Site(
                        f"coati.dataset.reward_dataset:{name}.__init__",
                        "coati_ext.patches.left_padding:tokenize_left",
                        generations=("G1", "G2"),
                        mode="wrap",
                        needs=("tokenizer",),
                        fits=fits,
                    )
                    for name, fits in _REWARD_DATASETS.items()
                ),
                Site(
                    "coati.dataset.prompt_dataset:PromptDataset.__init__",
                    "coati_ext.patches.left_padding:tokenize_left",
                    generations=("G1", "G2"),
                    mode="wrap",
                    needs=("tokenizer",),
                    fits=_PROMPT_DATASET,
                ),
                Site(
                    "coati.dataset.loader:DataCollatorForPreferenceDataset.__call__",
                    "coati_ext.patches.left_padding:collate_preferences",
                    generations=("G3", "G4"),
                    mode="wrap",
                    needs=("self.tokenizer", "self.max_length"),
                    fits={
                        "v0.3.7 .. HEAD": (
                            "b1b2e3e8-e683351a-463233d5-60d6a097-2ca091f4-bd660fb8-b9739cb5-f39d055f"
                        ),
                        "stand-in": "b1b2e3e8-a8ab7aed-796f4011-e421d5f1-05c20091",
                    },
                ),
                Site(
                    "coati.dataset.loader:DataCollatorForPromptDataset.__call__",
                    "coati_ext.patches.left_padding:collate_prompts",
                    generations=("G3", "G4"),
                    mode="wrap",
                    needs=("self.tokenizer", "self.max_length"),
                    fits={
                        "v0.3.7 .. v0.4.7": "b1b2e3e8-19733e13-05b69893-ec84ea64-ffc994ca-744eb536",
                        "v0.4.8 .. HEAD": (
                            "b1b2e3e8-d0b63f14-19733e13-05b69893-ec84ea64-ffc994ca-b0674dcb"
                        ),
                        "stand-in G4": "b1b2e3e8-fd0e98c5-1cc1e5f4-215a4304-e5a45353",
                        "stand-in G3": "b1b2e3e8-fd0e98c5-b01efd06-215a4304-6cb38a90",
                    },
                ),
                Site(
                    "coati.trainer.dpo:DPOTrainer._before_fit",
                    "coati_ext.patches.left_padding:keep_upstream_layout",
                    generations=("G3", "G4"),
                    mode="wrap",
                    fits={
                        "v0.3.7 .. v0.4.4": (
                            "5e3d8893-b8a00f01-785e2d28-cbfdc148-fafad1d9-39327700"
                        ),
                        "v0.4.5 .. HEAD": (
                            "5e3d8893-b8a00f01-785e2d28-cbfdc148-0834b0f2-5c0d7d4c-ecf335d0"
                        ),
                        "stand-in": "5e3d8893-b8a00f01-785e2d28-fa77c767",
                    },
                ),
                Site(
                    "coati.trainer.orpo:ORPOTrainer._before_fit",
                    "coati_ext.patches.left_padding:keep_upstream_layout",
                    generations=("G3", "G4"),
                    mode="wrap",
                    optional=True,
                    fits={
                        "v0.4.1 .. HEAD": "5e3d8893-b8a00f01-785e2d28-cbfdc148-4ab62956-aeb273bf",
                        "stand-in": "5e3d8893-b8a00f01-785e2d28-46f36158",
                    },
                ),
            ),
        )
    )


_REWARD_DATASETS = {
    "RmStaticDataset": {
        "v0.2.8 .. v0.3.1": "57fcd6f8-c41c9983-c49a7f61-a048316d-86258094-306a3d7c",
        "v0.3.2 .. v0.3.6": (
            "57fcd6f8-c41c9983-fc7392ba-96b5b48d-e05ba2e9-a31c24fb-20769984-3b364566-90f284fc"
        ),
        "stand-in": "57fcd6f8-c41c9983-fc7392ba-8301f746-9d614ddd-8bc9a443-fe12f2ea-c9f56de9",
    },
    "HhRlhfDataset": {
        "v0.2.8 .. v0.3.1": "57fcd6f8-c41c9983-c49a7f61-a048316d-86258094-abede57d",
        "v0.3.2 .. v0.3.6": (
            "57fcd6f8-c41c9983-fc7392ba-36c7b78c-e05ba2e9-a31c24fb-9a141498-3b364566-90f284fc"
        ),
        "stand-in": "57fcd6f8-c41c9983-fc7392ba-8301f746-1e62c233-61704acc",
    },
}

_PROMPT_DATASET = {
    "v0.2.8": "2840425d-22f14c3b-c4610c5a-641424e2-374b4ac4-9f5910e6-df4345c8-3075d789",
    "v0.3.0": "2a8a75df-22f14c3b-8df51e2d-641424e2-374b4ac4-9f5910e6-df4345c8-41095270",
    "v0.3.1": (
        "2a8a75df-22f14c3b-8df51e2d-641424e2-374b4ac4-9f5910e6-df4345c8-34dcd2eb-3f324cee-32a07776"
    ),
    "v0.3.2 .. v0.3.6": (
        "2a8a75df-22f14c3b-8df51e2d-67817789-7e6cc0cc-374b4ac4-77d22baa-c75f7344-34dcd2eb-3f324cee-"
        "32a07776"
    ),
    "stand-in": "2a8a75df-c41c9983-8e0c0d73-9cf03456-5fe9d219-ca86b030-b3359c80",
}


@hookimpl
def register_defects(register: Callable[[Defect], None]) -> None:
    """Declare what ``doctor --live`` measures."""
    here = "coati_ext.patches.left_padding:"
    register(
        Defect(
            "end token lost",
            "left_padding",
            "share of over-long preference rows that do not end in the end token",
            ("G1", "G2", "G3", "G4"),
            here + "measure_lost_ends",
        )
    )
    register(
        Defect(
            "right-padded rows",
            "left_padding",
            "share of short preference rows padded after their end, tokenizer side right",
            ("G1", "G2", "G3", "G4"),
            here + "measure_right_padding",
        )
    )
    register(
        Defect(
            "prompt tokens masked",
            "left_padding",
            "real tokens hidden in a prompt with two inner eos, pad == eos",
            ("G3", "G4"),
            here + "measure_hidden_prompt_tokens",
        )
    )


def _rows_of(lengths: Sequence[int]) -> List[Any]:
    """Eight columns wide, the rows that the installed coati makes of answers of some lengths."""
    from coati_ext.testing import chosen_rows, tiny_tokenizer

    tokenizer = tiny_tokenizer(padding_side="right")
    word = tokenizer.convert_ids_to_tokens(5)
    answers = [f"{word} " * (length - 1) for length in lengths]
    pairs = [{"prompt": "", "chosen": answer, "rejected": answer} for answer in answers]
    return chosen_rows(pairs, tokenizer=tokenizer, max_length=8)


def measure_lost_ends() -> float:
    """The share of over-long rows whose last real token is not the end token."""
    from coati_ext.testing import tiny_tokenizer

    eos = tiny_tokenizer().eos_token_id
    rows = _rows_of([9, 12, 30])
    return float(sum(int(ids[mask][-1]) != eos for ids, mask in rows) / len(rows))


def measure_right_padding() -> float:
    """The share of short rows that have pads after their end."""
    rows = _rows_of([3, 5, 6])
    return sum(not bool(mask[-1]) for _, mask in rows) / len(rows)


def measure_hidden_prompt_tokens() -> float:
    """How many real tokens of one prompt are masked when pad and eos are the same token."""
    from coati.dataset import DataCollatorForPromptDataset

    from coati_ext.testing import tiny_tokenizer

    tokenizer = tiny_tokenizer(pad="eos", padding_side="left")
    eos = tokenizer.eos_token_id
    prompt = [5, 6, eos, 7, eos, 8]
    batch = DataCollatorForPromptDataset(tokenizer, max_length=8)([{"input_ids": prompt}])
    return float(len(prompt) - int(batch["attention_mask"].sum()))
