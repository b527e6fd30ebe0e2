"""Hidden states and old scores of all answers, saved batch by batch so that a run can resume."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from functools import partial
from typing import Any, Dict, List, Sequence, Tuple

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from coati_ext import __version__
from coati_ext.checkpoints import atomic, seal, stamp
from coati_ext.checkpoints.migrate.checkpoint import RewardModel, files_of
from coati_ext.checkpoints.migrate.data import ANSWERS, Pair
from coati_ext.checkpoints.migrate.task import Task
from coati_ext.errors import InputError

_PLAN = "coati_ext.checkpoints.migrate.json"


@dataclass(frozen=True)
class Features:
    """Hidden states and old scores of N pairs; index 0 of each pair is the chosen answer."""

    hidden: Tensor
    """(N, 2, H) float32, at the last real token."""
    old: Tensor
    """(N, 2) float32, the mean-pooled scores of G1."""


def compute(
    task: Task, model: RewardModel, tokenizer: Any, pairs: Sequence[Pair]
) -> Tuple[Features, int]:
    """The features of all pairs, and how many batches were read from an earlier run.

    Raises:
        InputError: the model gives numbers that are nan or infinite; names the first line.
    """
    end_kept = copy.deepcopy(tokenizer)
    end_kept.padding_side = end_kept.truncation_side = "left"
    cut = {"max_length": task.max_length, "truncation": True, "return_tensors": "pt"}
    found, resumed = [], 0
    with Progress(console=Console(stderr=True)) as bar, torch.no_grad():
        batches = batches_of(pairs, task.batch_size)
        for number, batch in enumerate(bar.track(batches, description="reading the answers")):
            file = task.part / f"{number:06d}.pt"
            if file.is_file():
                resumed += 1
            else:
                texts = [
                    pair.texts[name] + tokenizer.eos_token for pair in batch for name in ANSWERS
                ]
                hidden = model.hidden(end_kept(texts, padding=True, **cut))
                old = model.mean_pooled(tokenizer(texts, padding="max_length", **cut))
                shape = (len(batch), len(ANSWERS), -1)
                item = {"hidden": hidden.view(shape), "old": old.view(shape[:2])}
                atomic.put(file, partial(torch.save, item))
            found.append(torch.load(str(file), weights_only=True))
            _require_finite(found[-1], batch)
    return Features(
        **{name: torch.cat([item[name] for item in found]) for name in found[0]}
    ), resumed


def _require_finite(item: Dict[str, Tensor], batch: Sequence[Pair]) -> None:
    finite = item["hidden"].isfinite().all(dim=-1) & item["old"].isfinite()  # (B, 2)
    for pair, answers in zip(batch, finite.tolist()):
        for answer, good in zip(ANSWERS, answers):
            if not good:
                raise InputError(
                    f"the model's hidden state or score is nan or infinite for the {answer} answer "
                    f"of line {pair.line}, so no head can be fitted to it: is --pretrained the one "
                    "that it was trained from, and does its precision hold such numbers?"
                )


def batches_of(pairs: Sequence[Pair], size: int) -> List[Sequence[Pair]]:
    """The pairs in batches of ``size``."""
    return [pairs[start : start + size] for start in range(0, len(pairs), size)]


def open_part(task: Task, model: RewardModel, tokenizer: Any) -> None:
    """Create the folder of features, or check that an existing one is of the same task.

    Raises:
        InputError: it cannot be made, or is another task's.
    """
    pads = f"{tokenizer.pad_token_id} on the {tokenizer.padding_side}"
    plan = {
        "coati-ext": __version__,
        "checkpoint": seal.seals_of(files_of(task.checkpoint)),
        "pretrained": task.pretrained,
        "data": seal.seals_of([task.data]),
        "tokenizer": f"{stamp.tokenizer_fingerprint(tokenizer)}, pads {pads}",
        "max_length": task.max_length,
        "batch_size": task.batch_size,
        "device": model.device.type,
    }
    file = task.part / _PLAN
    text = json.dumps(plan, indent=2)
    try:
        task.part.mkdir(exist_ok=True)
        if all(item.name.startswith(_PLAN) for item in task.part.iterdir()):
            atomic.put(file, lambda new: new.write_text(text, encoding="utf-8"))
    except FileExistsError:
        pass  # a file, as the next lines tell
    except OSError as error:
        raise InputError(f"cannot write into {task.part}: {error.strerror}") from error
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        differing = [name for name in plan if found.get(name) != plan[name]]
    except (OSError, ValueError, AttributeError):
        raise InputError(
            f"{task.part} is in the way and no folder of coati-ext migrate: move it, or give "
            "another --output"
        ) from None
    if differing:
        told = "".join(f"\n  {n}: {found.get(n)} there, {plan[n]} now" for n in differing)
        raise InputError(
            f"{task.part} is what another run has computed so far:{told}\nGive what it was given "
            "to go on with it, or remove that folder to start anew"
        )
