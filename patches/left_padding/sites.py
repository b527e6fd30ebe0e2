"""The sites: the datasets of G1 and G2, the collators and a trainer of G3 and G4."""

from __future__ import annotations

from coati_ext import Reliance, Site

_OURS = "coati_ext.patches.left_padding."
_DATASETS = (
    "coati.dataset.reward_dataset:RmStaticDataset",
    "coati.dataset.reward_dataset:HhRlhfDataset",
    "coati.dataset.prompt_dataset:PromptDataset",
)
_COLLATOR = ("self.tokenizer", "self.max_length")

SITES = (
    *(
        Site(
            f"{dataset}.__init__",
            _OURS + "datasets:tokenize_left",
            generations=("G1", "G2"),
            mode="wrap",
            needs=("tokenizer",),
        )
        for dataset in _DATASETS
    ),
    Site(
        "coati.dataset.loader:DataCollatorForPreferenceDataset.__call__",
        _OURS + "collators:collate_preferences",
        generations=("G3", "G4"),
        mode="wrap",
        needs=_COLLATOR,
    ),
    Site(
        "coati.dataset.loader:DataCollatorForPromptDataset.__call__",
        _OURS + "collators:collate_prompts",
        generations=("G3", "G4"),
        mode="wrap",
        needs=_COLLATOR,
    ),
    Site(
        "coati.dataset.loader:apply_chat_template_and_mask",
        _OURS + "prompts:keep_the_end",
        generations=("G4",),
        mode="wrap",
        needs=("tokenizer.apply_chat_template",),
        optional=True,
    ),
    Site(
        "coati.trainer.rm:RewardModelTrainer._before_fit",
        _OURS + "trainers:read_left_padded",
        generations=("G3", "G4"),
        mode="wrap",
        needs=("self.train_dataloader", "self.eval_dataloader"),
    ),
)

RELIES = (
    *(
        Reliance(
            f"coati.dataset.reward_dataset:{dataset}.__getitem__",
            ("G1", "G2"),
            why="gives the chosen answer before the rejected one, each with its mask",
            refuse=True,
        )
        for dataset in ("RmStaticDataset", "HhRlhfDataset")
    ),
    Reliance(
        "coati.dataset.prompt_dataset:PromptDataset.__getitem__",
        ("G1", "G2"),
        why="gives a prompt and its mask",
    ),
    *(
        Reliance(
            f"coati.dataset.{name}",
            ("G3", "G4"),
            why="pads and cuts the rows, on the side of the tokenizer",
        )
        for name in (
            "loader:DataCollatorForSupervisedDataset.__call__",
            "utils:chuncate_sequence",
            "utils:pad_to_max_len",
        )
    ),
)
