"""Measure the mean and spread of reference answers' rewards, and keep them in the stamp.

The reward model is read as ``migrate`` reads one, without coati: its own value head at the last
real token of each left-padded row. No weight changes. Under ``reward_scaling.mode = "reference"`` a
run takes the mean off the rewards of this checkpoint and divides by the spread.

Letters: B rows, S sequence columns, N answers.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Dict, List, Sequence

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from coati_ext import __version__
from coati_ext.checkpoints import atomic, stamp
from coati_ext.checkpoints.migrate import check_length, device_named
from coati_ext.checkpoints.migrate.checkpoint import RewardModel, Weights, load_config, read_weights
from coati_ext.checkpoints.migrate.data import Record, load_tokenizer, read_lines, split, texts_of
from coati_ext.errors import InputError, in_a_line

Facts = Dict[str, Any]
IDS = "chosen_input_ids"
TEXTS = ("prompt", "chosen")


@dataclass(frozen=True)
class Task:
    """The arguments of ``coati-ext calibrate``."""

    checkpoint: Path
    pretrained: str
    data: Path
    tokenizer: str = ""
    """Empty for that of ``pretrained``."""
    generation: str = ""
    """Of the coati that trained a model without a stamp."""
    max_length: int = 512
    batch_size: int = 8
    held_out: float = 0.1
    device: str = "auto"


@dataclass(frozen=True)
class Answer:
    """One reference answer after its prompt, and its line in the data file."""

    line: int
    text: str = ""
    ids: Sequence[int] = ()
    """Instead of the text, as coati's own preparation of data has tokenized it."""


def calibrate(task: Task) -> Facts:
    """Write mean and spread into the checkpoint's stamp, and return them and what was there.

    Raises:
        InputError: the checkpoint or the data cannot be used; nothing is written.
        StampError: the checkpoint has a corrupt stamp.
    """
    files = stamp.traces(task.checkpoint)
    tokenizer = load_tokenizer(
        task.tokenizer or task.pretrained, "--tokenizer" if task.tokenizer else "--pretrained"
    )
    mark = _stamp_of(task, tokenizer)
    answers = read_answers(task.data)
    measured, held_out = split(len(answers), task.held_out, "answers")
    config = load_config(task.pretrained)
    weights = read_weights(task.checkpoint)
    _require_no_adapters(task, weights, mark)
    device = device_named(task.device)
    model = RewardModel(weights, config, task.pretrained, device, str(task.checkpoint))
    check_length(task.max_length, task.pretrained, model)
    scores = _scores(task, model, tokenizer, answers)

    mean, spread = _level(scores[measured])
    if not spread > 1e-6 * abs(mean):  # which rounding leaves of equal rewards
        raise InputError(
            f"all {len(measured)} answers that were measured get the reward {mean:g}, which leaves "
            "no spread to divide by: give other answers, or check that the model is trained"
        )
    data = hashlib.sha256(task.data.read_bytes()).hexdigest()[:12]
    scale = stamp.Scale(mean, spread, len(measured), data)
    if stamp.traces(task.checkpoint) != files:
        raise InputError(f"{task.checkpoint} was written to meanwhile: nothing was changed")
    _write(task, weights, replace(mark, scale=scale), model.prefix)

    before, after = _level(scores[held_out]), _level((scores[held_out] - mean) / spread)
    return {
        "checkpoint": str(task.checkpoint),
        "measured_answers": len(measured),
        "held_out_answers": len(held_out),
        "mean": mean,
        "spread": spread,
        "held_out": {
            "before": dict(zip(("mean", "spread"), before)),
            "after": dict(zip(("mean", "spread"), after)),
            "standard_error": after[1] / len(held_out) ** 0.5,
        },
        "replaced": None if mark.scale is None else {**vars(mark.scale)},
    }


def read_answers(file: Path) -> List[Answer]:
    """The reference answers of a JSON Lines file, each once.

    Raises:
        InputError: the file cannot be read, or lines are not answers; the first of them are named.
    """
    found: Dict[Any, Answer] = {}
    for answer in read_lines(file, _answer, "reference answers", TEXTS):
        found.setdefault((answer.text, tuple(answer.ids)), answer)
    return list(found.values())


def _answer(record: Record, line: int) -> Answer:
    if IDS not in record:
        return Answer(line, text="".join(texts_of(record, TEXTS)))
    ids = record[IDS]
    if not (isinstance(ids, list) and ids and all(type(item) is int and item >= 0 for item in ids)):
        raise InputError(f"{IDS} is no list of token ids")
    return Answer(line, ids=ids)


def _stamp_of(task: Task, tokenizer: Any) -> stamp.Stamp:
    """The checkpoint's stamp, if its model is to be read as it is read here; or a new one."""
    if not task.checkpoint.exists():
        raise InputError(f"there is no checkpoint {task.checkpoint}")
    here = stamp.Stamp(
        kind=stamp.REWARD_MODEL,
        pooling=stamp.EOS,
        **stamp.FRAME,
        end_token=tokenizer.eos_token_id,
        tokenizer=stamp.tokenizer_fingerprint(tokenizer),
        generation=task.generation,
        version=__version__,
        digest="",
    )
    found, why = stamp.read(task.checkpoint)
    if found is None:
        if not task.generation:
            raise InputError(
                f"{task.checkpoint}: {why}, so nobody knows how it was trained. If upstream's G2, "
                "G3 or G4 has trained it, say so by --generation; one of G1 is mean-pooled and "
                "needs `coati-ext migrate` first"
            )
        return here
    if found.kind != stamp.REWARD_MODEL:
        raise InputError(f"{task.checkpoint} is a {found.kind}: a reward model was expected")
    different = found.differences(here)
    if different:
        raise InputError(
            f"{task.checkpoint} was trained in another form ({', '.join(different)}).\n"
            f"  trained with: {found.form}\n  read here as: {here.form}\n"
            "Give the --tokenizer that it was trained with. Another pooling than eos cannot be "
            "calibrated, and a mean-pooled model of G1 needs `coati-ext migrate` first"
        )
    return found


def _require_no_adapters(task: Task, weights: Weights, mark: stamp.Stamp) -> None:
    if mark.generation in ("G3", "G4") and any(".lora_" in key for key in weights):
        raise InputError(
            f"{task.checkpoint} has LoRA weights of {mark.generation}, whose scale is in no file: "
            "save the model with merged weights"
        )


def _scores(task: Task, model: RewardModel, tokenizer: Any, answers: Sequence[Answer]) -> Tensor:
    """The reward of each answer, (N,) float64."""
    found = []
    with Progress(console=Console(stderr=True)) as bar, torch.no_grad():
        starts = range(0, len(answers), task.batch_size)
        for start in bar.track(starts, description="scoring the answers"):
            batch = answers[start : start + task.batch_size]
            scores = model.head(model.hidden(_rows(task, tokenizer, batch)))
            for answer, finite in zip(batch, scores.isfinite().tolist()):
                if not finite:
                    raise InputError(
                        f"the model's reward of the answer of line {answer.line} is nan or "
                        "infinite: is --pretrained the one that it was trained from, and does its "
                        "precision hold such numbers?"
                    )
            found.append(scores)
    return torch.cat(found)


def _rows(task: Task, tokenizer: Any, batch: Sequence[Answer]) -> Dict[str, Tensor]:
    """Ids and mask (B, S) of answers that end in the end token, cut at their head."""
    rows = []
    for answer in batch:
        text = answer.text + tokenizer.eos_token
        ids = list(answer.ids or tokenizer(text)["input_ids"])
        rows.append(torch.tensor(ids[-task.max_length :]))
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad(rows, batch_first=True),
        "attention_mask": pad([torch.ones_like(row) for row in rows], batch_first=True),
    }


def _level(scores: Tensor) -> Sequence[float]:
    """Mean and standard deviation of scores (N,)."""
    return float(scores.mean()), float(scores.std(unbiased=False))


def _write(task: Task, weights: Weights, mark: stamp.Stamp, prefix: str) -> None:
    """Write the stamp to where the checkpoint has one, at once or not at all."""
    checkpoint = task.checkpoint
    inside = checkpoint.is_file() and checkpoint.suffix != ".safetensors"
    try:
        beside = not inside or stamp.file_of(checkpoint).exists()
        if inside:
            stamp.put(weights, mark, prefix.rstrip("."))

            def save(file: Path) -> None:
                torch.save(weights, file)
                shutil.copymode(str(checkpoint), str(file))

            # A kill between the two leaves a stamp of other weights, and the one inside counts.
            atomic.put(checkpoint, save)
        if beside:
            stamp.write(checkpoint, mark)
    except (OSError, RuntimeError) as error:  # RuntimeError: torch's own writer
        raise InputError(f"cannot write {checkpoint}: {in_a_line(error)}") from error
