"""Train a reward model with coati's own trainer, and measure it.

These functions do what a user's script does, with the coati that is importable. They contain no
code for patches, so the same call runs with and without them.
"""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from importlib import import_module
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from coati_ext.testing.assertions import Scorer
from coati_ext.testing.cpu import LocalBooster, LocalCoordinator, LocalStrategy, cpu_only
from coati_ext.testing.padding import pad_rows

Pair = Dict[str, str]


def train_reward_model(
    model: torch.nn.Module,
    pairs: Sequence[Pair],
    *,
    tokenizer: Any,
    epochs: int = 1,
    batch_size: int = 16,
    lr: float = 3e-3,
    max_length: int = 512,
    seed: int = 0,
    shuffle: bool = True,
    optimizer: Callable[..., Optimizer] = torch.optim.Adam,
    booster: Any = None,
    accumulation_steps: int = 1,
    held_out: Sequence[Pair] = (),
    log_dir: Optional[str] = None,
) -> torch.nn.Module:
    """Train `model` in place with the `RewardModelTrainer` and the dataset of coati.

    Args:
        model: a coati reward model, such as :func:`coati_ext.testing.tiny_reward_model` gives.
        pairs: records {"prompt", "chosen", "rejected"}; the EOS token is appended to every answer.
        tokenizer: decides the side and the token of padding.
        epochs: passes over the pairs.
        batch_size: pairs per step; an incomplete last batch is dropped.
        lr: the learning rate.
        max_length: columns of every batch; longer rows are cut as coati cuts them.
        seed: of the order of the pairs; the global random state is restored.
        shuffle: whether the pairs are shuffled.
        optimizer: the class of the optimizer.
        booster: a `Booster`, or in G1 and G2 a `Strategy`; on the CPU call within `cpu_only()`. By
            default everything runs in this process, on the CPU.
        accumulation_steps: batches whose gradients are summed for a step, in G3 and G4.
        held_out: pairs to evaluate with after each epoch; G3 and G4 need a `log_dir` then.
        log_dir: an existing folder for coati's TensorBoard log and results; G1 writes none.

    Returns:
        The model as the booster wrapped it, in eval mode; by default that is `model`.
    """
    prepare = _pair_dataset if has_strategies() else _pair_collator
    data, collate = prepare(pairs, tokenizer, max_length)
    models, trainers = import_module("coati.models"), import_module("coati.trainer")
    place = cpu_only() if booster is None else nullcontext()
    booster = local_booster() if booster is None else booster
    plain = optimizer(trained_parameters(model), lr=lr)
    wrapped, boosted = boost(booster, model, plain)
    loader: DataLoader[Any] = DataLoader(
        data,
        batch_size=batch_size,
        shuffle=shuffle,
        drop_last=True,
        collate_fn=collate,
        generator=torch.Generator().manual_seed(seed),
    )
    held: Optional[DataLoader[Any]] = None
    if held_out:
        rows, collate = prepare(held_out, tokenizer, max_length)
        held = DataLoader(rows, batch_size=batch_size, collate_fn=collate)
    # Generations differ in names and order of arguments; each takes the ones it knows.
    offered = {
        "model": wrapped,
        "strategy": booster,
        "booster": booster,
        "plugin": booster.plugin,
        "optim": boosted,
        "optimizer": boosted,
        "lr_scheduler": torch.optim.lr_scheduler.LambdaLR(plain, lambda _: 1.0),
        "tokenizer": tokenizer,
        "loss_fn": models.LogSigLoss(),
        "max_epochs": epochs,
        "coordinator": LocalCoordinator(),
        "accumulation_steps": accumulation_steps,
        "train_dataloader": loader,
        "valid_dataloader": None,
        "eval_dataloader": held,
        "train_preference_dataloader": loader,
        "eval_preference_dataloader": held,
        "save_dir": log_dir,
        "log_dir": log_dir,
    }
    with place, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        trainer = trainers.RewardModelTrainer(
            **known(trainers.RewardModelTrainer.__init__, offered)
        )
        trainer.fit(**known(getattr(trainer, "_before_fit", trainer.fit), offered))
    evaluated: torch.nn.Module = wrapped.eval()
    return evaluated


def pair_accuracy(
    model: Scorer,
    pairs: Sequence[Pair],
    *,
    tokenizer: Any,
    max_length: int = 512,
    side: Optional[str] = None,
    batch_size: int = 32,
) -> float:
    """Return the share of pairs whose chosen answer gets the higher reward.

    As in training, rows end in the EOS token, are cut on the right and padded to `max_length` on
    `side` ("left" or "right"; by default the tokenizer's side).  `model` takes ids (B, S) and a
    mask (B, S) and returns rewards (B,).
    """
    side = tokenizer.padding_side if side is None else side
    rewards = {}
    with torch.no_grad():
        for answer in ("chosen", "rejected"):
            rows = [_encode(tokenizer, pair, answer)[:max_length] for pair in pairs]
            scores = []
            for start in range(0, len(rows), batch_size):
                ids, mask = pad_rows(
                    rows[start : start + batch_size],
                    pad_token_id=tokenizer.pad_token_id,
                    side=side,
                    width=max_length,
                )
                scores.append(model(ids, mask))
            rewards[answer] = torch.cat(scores)
    return float((rewards["chosen"] > rewards["rejected"]).float().mean())


def chosen_rows(
    pairs: Sequence[Pair], *, tokenizer: Any, max_length: int = 512
) -> List[Tuple[torch.Tensor, torch.Tensor]]:
    """Return ids (S,) and bool mask (S,) of each pair's chosen answer, as coati's data path passes
    them to its reward-model trainer.  S is `max_length`, or less where coati pads less.
    """
    prepare = _pair_dataset if has_strategies() else _pair_collator
    data, collate = prepare(pairs, tokenizer, max_length)
    if collate is None:
        items = [data[index] for index in range(len(data))]
        return [(item[0].view(-1), item[1].view(-1).bool()) for item in items]
    trainer = import_module("coati.trainer").RewardModelTrainer
    reader = trainer.__new__(trainer)
    reader._before_fit(DataLoader(data, batch_size=len(data), collate_fn=collate))
    batch = next(iter(reader.train_dataloader))
    return list(zip(batch["chosen_input_ids"], batch["chosen_attention_mask"].bool()))


def local_booster() -> Any:
    """A `LocalBooster` or `LocalStrategy`, whichever the trainers of this coati take."""
    return LocalStrategy() if has_strategies() else LocalBooster()


def boost(booster: Any, model: torch.nn.Module, optimizer: Any = None) -> Any:
    """The model, or the model and its optimizer, as wrapped by a `Booster` or a `Strategy`."""
    if hasattr(booster, "prepare"):
        return booster.prepare(model if optimizer is None else (model, optimizer))
    boosted = booster.boost(model, optimizer)[:2]
    return boosted[0] if optimizer is None else boosted


def trained_parameters(model: torch.nn.Module) -> List[torch.nn.Parameter]:
    """The parameters with `requires_grad`, for example those of LoRA."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def has_strategies() -> bool:
    """Whether this coati is of G1 or G2, where `coati.models.base` is a package."""
    return hasattr(import_module("coati.models.base"), "__path__")


def _pair_dataset(pairs: Sequence[Pair], tokenizer: Any, max_length: int) -> Any:
    dataset = import_module("coati.dataset").RmStaticDataset
    return dataset(list(pairs), tokenizer, max_length), None


def _pair_collator(pairs: Sequence[Pair], tokenizer: Any, max_length: int) -> Any:
    records: List[Dict[str, List[int]]] = []
    for pair in pairs:
        prompt = len(tokenizer(pair["prompt"])["input_ids"])
        record = {}
        for answer in ("chosen", "rejected"):
            ids = _encode(tokenizer, pair, answer)
            record[f"{answer}_input_ids"] = ids
            record[f"{answer}_loss_mask"] = [0] * prompt + [1] * (len(ids) - prompt)
        records.append(record)
    collator = import_module("coati.dataset").DataCollatorForPreferenceDataset
    return records, collator(tokenizer=tokenizer, max_length=max_length)


def _encode(tokenizer: Any, pair: Pair, answer: str) -> List[int]:
    text = pair["prompt"] + pair[answer] + tokenizer.eos_token
    return list(tokenizer(text)["input_ids"])


def known(function: Callable[..., Any], offered: Dict[str, Any]) -> Dict[str, Any]:
    """The subset of some arguments that a function takes by name."""
    names = inspect.signature(function).parameters
    return {name: value for name, value in offered.items() if name in names}
