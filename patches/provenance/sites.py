"""The sites: where models are saved and loaded, and where rows are tokenized."""

from __future__ import annotations

from coati_ext import Site

_OURS = "coati_ext.patches.provenance."
_ALL = ("G1", "G2", "G3", "G4")

SITES = (
    *(
        Site(
            f"colossalai.booster.booster:Booster.{name}",
            f"{_OURS}boosters:{name}",
            generations=_ALL,
            mode="wrap",
            takes=("model", "checkpoint"),
            optional=True,  # coati's models and makers also run without colossalai
        )
        for name in ("save_model", "load_model")
    ),
    *(
        Site(f"{model}._{name}", f"{_OURS}state_dicts:{name}", generations, mode="extend")
        for model, generations in (
            ("coati.models.base.reward_model:RewardModel", ("G1", "G2")),
            ("coati.models.base.critic:Critic", ("G1", "G2")),
            ("coati.models.reward_model:RewardModel", ("G3", "G4")),
            ("coati.models.critic:Critic", ("G3", "G4")),
        )
        for name in ("save_to_state_dict", "load_from_state_dict")
    ),
    *(
        Site(
            f"coati.dataset.reward_dataset:{name}.__init__",
            _OURS + "tokenizers:reward_dataset",
            generations=("G1", "G2"),
            mode="wrap",
            takes=("dataset", "tokenizer"),
        )
        for name in ("RmStaticDataset", "HhRlhfDataset")
    ),
    Site(
        "coati.trainer.rm:RewardModelTrainer.__init__",
        _OURS + "tokenizers:reward_trainer",
        generations=("G3", "G4"),
        mode="wrap",
        takes=("model", "tokenizer"),
    ),
    Site(
        "coati.experience_maker.naive:NaiveExperienceMaker.make_experience",
        _OURS + "tokenizers:make_experience",
        generations=_ALL,
        mode="wrap",
        takes=("input_ids",),
    ),
)
