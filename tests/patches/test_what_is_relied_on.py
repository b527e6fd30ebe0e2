"""Every function of upstream that runs around the patches is one that they rely on, or harmless."""

from __future__ import annotations

import ast
import contextlib
import sys
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from coati_ext.patches import rollout
from coati_ext.plan import make_plan
from coati_ext.testing import (
    cpu_only,
    experience_maker,
    ppo_trainer,
    preference_pairs,
    standin,
    tiny_models,
    tiny_reward_model,
    tiny_tokenizer,
    train_reward_model,
)
from coati_ext.testing.cpu import LocalBooster, LocalCoordinator
from coati_ext.testing.padding import pad_rows
from coati_ext.testing.rollouts import LocalModel, default_generate_kwargs, has_strategies

PROMPTS = [[1, 9, 8, 7], [1, 5], [1, 14, 6, 33], [1, 2, 7]]
WIDTH, LENGTH = 6, 12
HARMLESS = {  # what a run enters as well, and why an edit there is left to the user
    "coati.trainer.callbacks.*": "looks on",
    "coati.trainer.base:*._on_*": "tells the callbacks",
    "coati.trainer.base:*._*_ctx": "tells the callbacks",
    "coati.utils.accumulative_meter:*": "keeps what is logged",
    "coati.trainer.utils:all_reduce_mean": "averages what is logged",
    "*:is_rank_0": "says who logs",
    "coati.trainer.base:*Trainer.__init__": "keeps what the trainer was given",
    "coati.trainer.rm:RewardModelTrainer.__init__": "keeps what the trainer was given",
    "coati.trainer.*Trainer._before_fit": "keeps the loaders and opens the log",
    "coati.trainer.base:SLTrainer.fit": "counts the epochs",
    "coati.trainer.ppo:PPOTrainer._setup_update_phrase_dataload": "loads the buffer in batches",
    "coati.trainer.grpo:GRPOTrainer._setup_update_phrase_dataload": "loads the buffer in batches",
    "coati.trainer.utils:CycledDataLoader.*": "hands batches on",
    "coati.trainer.utils:to_device*": "moves tensors",
    "coati.experience_maker.base:Experience.to_device": "moves tensors",
    "*:_set_default_generate_kwargs": "hands on the methods of Hugging Face's models",
    "coati.models.base:get_base_model": "finds that model",
    "coati.models.gpt.*.__init__": "makes the backbone that the user asks for",
    "coati.models.lora:*": "changes the backbone as the user asks for",
    "coati.models.rlvr_reward_model:RLVRRewardModel.*": "keeps the user's functions",
    "coati.models.loss:GPTLMLoss.*": "is the loss of pretraining data, which stays upstream's",
    "*.__len__": "counts",
    "*Buffer.clear": "empties the buffer",
}


def test_what_runs_around_the_patches_is_known(on, tmp_path):
    relied = {item.reliance.target for item in make_plan().relies if item.patch != "distributed"}
    entered = set()
    with profiled(on.package, entered), cpu_only():
        train_a_reward_model()
        load_data()
        train_a_policy(tmp_path)
        if on.generation == "G4":
            train_by_groups(tmp_path)
            sample_by_upstream()
    assert relied - entered == set()
    if on.folder == standin(on.generation):
        return  # its functions are cut in other pieces
    targets = {step.site.target for step in make_plan().steps}
    others = entered - relied - targets
    assert [name for name in sorted(others) if not any(fnmatch(name, it) for it in HARMLESS)] == []


def train_a_reward_model():
    tokenizer = tiny_tokenizer()
    model = tiny_reward_model("gpt2", vocab_size=len(tokenizer))
    pairs = preference_pairs(4)
    train_reward_model(model, pairs, tokenizer=tokenizer, batch_size=2, max_length=64)


def load_data():
    """Also through the datasets that the trainings here do not need."""
    data = import_module("coati.dataset")
    if not has_strategies():
        return
    pairs = [{"chosen": "word1", "rejected": "word2"}]
    assert len(data.HhRlhfDataset(pairs, tiny_tokenizer(), 8)[0]) == 4
    prompts = data.PromptDataset.__new__(data.PromptDataset)
    prompts.keyed_prompt = {"input_ids": torch.ones(1, 2), "attention_mask": torch.ones(1, 2)}
    assert len(prompts[0]) == 2


def train_a_policy(folder):
    tokenizer = tiny_tokenizer(padding_side="left")
    options = {"early_stopping": True} if has_strategies() else {"save_interval": 1000}
    trainer = ppo_trainer(
        tiny_models("gpt2"),
        tokenizer=tokenizer,
        save_dir=str(folder),
        max_length=LENGTH,
        train_batch_size=2,
        **options,
    )
    for trainer.sample_buffer in (False, True):
        trainer.fit(
            num_episodes=1,
            num_collect_steps=1,
            num_update_steps=1,
            prompt_dataloader=prompt_loader(tokenizer),
            pretrain_dataloader=None,
        )


def sample_by_upstream():
    """With `rollout.generate = "upstream"`; in G4 the trainings ask transformers."""
    tokenizer = tiny_tokenizer(padding_side="left")
    maker = experience_maker(tiny_models("gpt2"), tokenizer=tokenizer)
    ids = torch.tensor([PROMPTS[0]])
    given = default_generate_kwargs(maker.actor, tokenizer)
    rollout.upstream(maker, ids, torch.ones_like(ids), LENGTH - WIDTH, given)


def train_by_groups(folder):
    models = tiny_models("gpt2")
    reward_model = import_module("coati.models").RLVRRewardModel([score])
    optimizer = torch.optim.Adam(models.actor.parameters(), lr=1e-3)
    tokenizer = tiny_tokenizer(padding_side="left")
    trainer = import_module("coati.trainer").GRPOTrainer(
        LocalBooster(),
        LocalModel(models.actor),
        reward_model,
        models.initial_model,
        optimizer,
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0),
        tokenizer,
        save_dir=str(folder),
        save_interval=1000,
        coordinator=LocalCoordinator(),
        offload_inference_models=False,
        dataloader_pin_memory=False,
        buffer_cpu_offload=False,
        num_generation=2,
        ptx_coef=0.0,
        train_batch_size=2,
        max_length=LENGTH,
        stop_token_ids=[[2]],
    )
    trainer.fit(1, 1, 1, prompt_loader(tokenizer))


def score(input_ids, attention_mask, **_):
    return torch.tensor(1.0)


def prompt_loader(tokenizer):
    """Prompts in batches, collated by upstream where it has a collator."""
    if has_strategies():
        ids, mask = pad_rows(PROMPTS, pad_token_id=0, side="left", width=WIDTH)
        rows = [{"input_ids": row, "attention_mask": one} for row, one in zip(ids, mask)]
        return DataLoader(rows, batch_size=2)
    collate = import_module("coati.dataset").DataCollatorForPromptDataset(tokenizer, WIDTH)
    rows = [{"input_ids": row, "gt_answer": 9} for row in PROMPTS]
    return DataLoader(rows, batch_size=2, collate_fn=collate)


@contextlib.contextmanager
def profiled(package: Path, entered: set):
    """Record the functions of a package that are entered, as targets."""
    root = f"{package}/"
    codes = set()

    def look(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(root):
            codes.add(frame.f_code)

    sys.setprofile(look)
    try:
        yield
    finally:
        sys.setprofile(None)
        names = {file: names_in(Path(file)) for file in {code.co_filename for code in codes}}
        for code in codes:
            name = names[code.co_filename].get(code.co_firstlineno)
            if name is not None:  # else a class body, a module, a lambda or a comprehension
                module = ".".join(Path(code.co_filename).relative_to(package.parent).parts)
                entered.add(f"{module[: -len('.py')].replace('.__init__', '')}:{name}")


def names_in(file: Path) -> dict:
    """The qualified names of the functions of a file, by the line that their code begins at."""
    found = {}

    def look(node, prefix):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                name = f"{prefix}{child.name}"
                if not isinstance(child, ast.ClassDef):
                    lines = [child.lineno, *(item.lineno for item in child.decorator_list)]
                    found[min(lines)] = name
                look(child, f"{name}.")
            else:
                look(child, prefix)

    look(ast.parse(file.read_text(encoding="utf-8")), "")
    return found
