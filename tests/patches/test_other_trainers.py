"""The trainers that no patch changes train the same with the flag as without, bit for bit.

DPO and ORPO share a collator with reward-model training, and DPO, ORPO and KTO share
``disable_dropout`` with PPO.
"""

from __future__ import annotations

import functools
from importlib import import_module
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


TRAINERS = {
    "DPOTrainer": Trainer("DataCollatorForPreferenceDataset", preferences),
    "ORPOTrainer": Trainer("DataCollatorForPreferenceDataset", preferences),
    "KTOTrainer": Trainer("DataCollatorForKTODataset", judged),
    "SFTTrainer": Trainer("DataCollatorForSupervisedDataset", texts),
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
