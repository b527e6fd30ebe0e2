"""The trainers that no patch changes train the same with the flag as without, bit for bit.

DPO and ORPO share a collator with reward-model training, and DPO, ORPO and KTO share
``disable_dropout`` with PPO.
"""

from __future__ import annotations

import functools
import json
from importlib import import_module
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple

import pytest
import torch
import transformers
from torch import Tensor
from torch.utils.data import DataLoader

import coati_ext
from coati_ext.testing import (
    LocalBooster,
    LocalCoordinator,
    cpu_only,
    random_rows,
    tiny_config,
    tiny_tokenizer,
)
from coati_ext.testing.training import known

pytestmark = pytest.mark.generations("G3", "G4")

WIDTH = 12
USUAL = "--max_length --save_dir"
ROWS = random_rows([3, 9, 14, 5, 12, 7, 20, 4, 6, 8, 16, 11])  # two are cut


class Called:
    """A collate function as a class of a user's own."""

    def __init__(self, collate: Callable[..., Any]) -> None:
        self.collate = collate

    def __call__(self, instances: Any) -> Any:
        return self.collate(instances)


WRAPPINGS: Dict[str, Callable[[Any], Any]] = {
    "plain": lambda collate: collate,
    "read before": lambda collate: collate,
    "partial": functools.partial,
    "lambda": lambda collate: lambda instances: collate(instances),
    "class": Called,
    "method": lambda collate: collate.__call__,
}


def preferences() -> Any:
    def part(name: str, ids: List[int]) -> Dict[str, Any]:
        return {f"{name}_input_ids": ids, f"{name}_loss_mask": [0] + [1] * (len(ids) - 1)}

    return [
        {**part("chosen", chosen), **part("rejected", rejected)}
        for chosen, rejected in zip(ROWS[::2], ROWS[1::2])
    ]


def judged() -> Any:
    # Upstream's collator for KTO has no room for longer rows.
    rows = [row[-WIDTH:] for row in ROWS]
    return [
        {"prompt": row[:1], "completion": row[1:], "label": place % 2 == 0}
        for place, row in enumerate(rows)
    ]


def texts() -> Any:
    return [{"input_ids": row, "labels": row} for row in ROWS]


class Trainer(NamedTuple):
    collator: str
    data: Callable[[], Any]
    script: str
    arguments: str  # what its script calls the length of rows and the folder for the model


TRAINERS = {
    "DPOTrainer": Trainer("DataCollatorForPreferenceDataset", preferences, "train_dpo.py", USUAL),
    "ORPOTrainer": Trainer("DataCollatorForPreferenceDataset", preferences, "train_orpo.py", USUAL),
    "KTOTrainer": Trainer("DataCollatorForKTODataset", judged, "train_kto.py", USUAL),
    "SFTTrainer": Trainer(
        "DataCollatorForSupervisedDataset", texts, "train_sft.py", "--max_len --save_path"
    ),
}


class Recorder(LocalBooster):
    """A booster that keeps every loss."""

    def __init__(self) -> None:
        self.losses: List[Tensor] = []

    def backward(self, loss: Tensor, optimizer: Any) -> None:
        self.losses.append(loss.detach().clone())
        super().backward(loss, optimizer)


def trained(name: str, family: str, wrapping: str, side: str) -> Dict[str, Tensor]:
    """What a trainer's model was given, the losses, and the weights that three epochs lead to."""
    cls, what = getattr(import_module("coati.trainer"), name), TRAINERS[name]
    model, reference = (with_dropout(family) for _ in range(2))
    if name != "SFTTrainer":  # as the scripts do
        for each in (model, reference):
            import_module("coati.models").disable_dropout(each)
    tokenizer = tiny_tokenizer(padding_side=side)
    collator = getattr(import_module("coati.dataset"), what.collator)(tokenizer, WIDTH)
    collate = WRAPPINGS[wrapping](collator)
    loader = DataLoader(what.data(), batch_size=4, drop_last=True, collate_fn=collate)
    if wrapping == "read before":
        next(iter(loader))
    booster, given, forward = Recorder(), [], model.forward

    def seen(*args: Any, **kwargs: Any) -> Any:
        items = (*args, *kwargs.values())
        given.extend(item.clone() for item in items if isinstance(item, Tensor))
        return forward(*args, **kwargs)

    model.forward = seen
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    offered = {
        "model": model,
        "actor": model,
        "ref_model": reference.eval(),
        "booster": booster,
        "optim": optimizer,
        "actor_optim": optimizer,
        "plugin": None,
        "tokenizer": tokenizer,
        "lr_scheduler": scheduler,
        "actor_lr_scheduler": scheduler,
        "max_epochs": 3,
        "save_interval": 100,
        "accumulation_steps": 1,
        "coordinator": LocalCoordinator(),
        "train_dataloader": loader,
        "train_preference_dataloader": loader,
    }
    with cpu_only(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        trainer = cls(**known(cls.__init__, offered))
        trainer.fit(**known(cls._before_fit, offered))
    assert (tokenizer.padding_side, tokenizer.truncation_side) == (side, "right")
    return {
        **{f"input {place}": item for place, item in enumerate(given)},
        **{f"loss {place}": item for place, item in enumerate(booster.losses)},
        **model.state_dict(),
    }


def with_dropout(family: str) -> Any:
    """A causal model whose dropout is a module in GPT-2, and a function in OPT."""
    config = tiny_config(family)
    for name in ("dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop"):
        if hasattr(config, name):
            setattr(config, name, 0.1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("name", TRAINERS)
def test_a_trainer_that_no_patch_changes_trains_the_same(upstream, name, full, tally):
    if not hasattr(import_module("coati.trainer"), name):
        pytest.skip(f"this coati has no {name}")
    families, sides = ("gpt2", "opt"), ("right", "left")
    cases = [(f, w, s) for f in families for w in WRAPPINGS for s in sides]
    if not full:  # each wrapping once; OPT's dropout is a function
        cases = [("opt", wrapping, sides[at % 2]) for at, wrapping in enumerate(WRAPPINGS)]
        cases.append(("gpt2", "plain", "right"))
    off = {case: trained(name, *case) for case in cases}
    with coati_ext.applied():
        on = {case: trained(name, *case) for case in cases}
    changed = [
        f"{name} {' '.join(case)}: {key}"
        for case in cases
        for key in off[case]
        if not off[case][key].equal(on[case][key])
    ]
    tally("trainers that no patch changes", len(cases), len({it.split(":")[0] for it in changed}))
    assert changed == []
    assert all(off[case].keys() == on[case].keys() for case in cases)


SCRIPT = """
import functools, random, runpy, sys
import torch
import transformers
import coati_ext
from coati_ext.testing import cpu_only, cpu_plugins

class Adam(torch.optim.AdamW):
    def __init__(self, model_params, adamw_mode=True, **options):
        super().__init__(model_params, **options)

with cpu_only(), cpu_plugins():
    coati_ext.enable()
    import colossalai
    import colossalai.nn.optimizer
    colossalai.launch_from_torch = lambda *_, **__: None
    colossalai.nn.optimizer.HybridAdam = Adam  # which needs a compiler for CUDA
    auto = transformers.AutoModelForCausalLM  # of OPT ColossalAI knows no other attention
    auto.from_pretrained = functools.partial(auto.from_pretrained, attn_implementation="eager")
    random.seed(0)
    torch.manual_seed(0)
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def slow_tokenizer(folder: Path) -> None:
    """Of the kind that the scripts load."""
    folder.mkdir()
    letters = {f"<{number}>": number for number in range(64)}
    (folder / "vocab.json").write_text(json.dumps(letters))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    files = [str(folder / "vocab.json"), str(folder / "merges.txt")]
    special = dict.fromkeys(("unk_token", "bos_token", "eos_token", "pad_token"), "<2>")
    transformers.GPT2Tokenizer(*files, **special).save_pretrained(str(folder))


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINERS)
def test_a_script_that_trains_no_reward_model_trains_the_same(upstream, python, name, tmp_path):
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("colossalai")
    what = TRAINERS[name]
    script = upstream.folder / "examples" / "training_scripts" / what.script
    if not script.exists():
        pytest.skip(f"this coati has no {what.script}")
    slow_tokenizer(tmp_path / "model")
    with_dropout("opt").save_pretrained(str(tmp_path / "model"))
    datasets.Dataset.from_list(what.data()).save_to_disk(str(tmp_path / "data"))
    width, folder = what.arguments.split()
    weights = []
    for flag in "01":
        done = python.warm(
            *("-c", SCRIPT, str(script), "--plugin", "zero2", "--mixed_precision", "bf16"),
            *("--pretrain", str(tmp_path / "model"), "--dataset", str(tmp_path / "data")),
            *("--max_epochs", "2", "--batch_size", "2", "--accumulation_steps", "1"),
            *("--lr", "1e-3", width, str(WIDTH), folder, str(tmp_path / flag)),
            *("--config_file", str(tmp_path / "written" / "config.json")),
            check=False,
            COATI_EXT=flag,
        )
        told = [line for line in done.stderr.splitlines() if "Error" in line][-1:]
        if done.returncode and flag == "0":
            pytest.skip(f"{what.script} of this coati fails here by itself: {told}")
        assert done.returncode == 0, done.stderr
        saved = sorted((tmp_path / flag).rglob("*.bin"))
        weights.append({k: v for file in saved for k, v in torch.load(str(file)).items()})
    off, on = weights
    if not off:
        pytest.skip(f"{what.script} of this coati writes no model")
    assert off.keys() == on.keys()
    assert [key for key in off if not off[key].equal(on[key])] == []
    before = with_dropout("opt").state_dict()
    assert any(not before[key].to(item.dtype).equal(item) for key, item in off.items())
