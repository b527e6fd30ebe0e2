"""Re-fit the value head of a mean-pooled reward model (G1) so that it reads the last real token.

The backbone is frozen. Its hidden state at the last real token of every answer is computed once
and saved batch by batch, so that an interrupted run can resume. Fitting the head to these features
is a convex problem.

Letters: B rows, S sequence columns, H hidden, N pairs.
"""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any, Dict

import torch

from coati_ext import __version__
from coati_ext.checkpoints import atomic, stamp
from coati_ext.checkpoints.migrate.checkpoint import (
    RewardModel,
    Weights,
    load_config,
    read_weights,
)
from coati_ext.checkpoints.migrate.data import ANSWERS, load_tokenizer, read_pairs, split
from coati_ext.checkpoints.migrate.features import Features, batches_of, compute, open_part
from coati_ext.checkpoints.migrate.head import (
    Head,
    accuracy,
    chance_of,
    changes,
    correlation,
    fit,
    loss,
    ranks,
)
from coati_ext.checkpoints.migrate.task import Task
from coati_ext.errors import InputError, in_a_line

__all__ = ["Features", "Task", "migrate"]

Facts = Dict[str, Any]
LEVEL = 0.05
"""Losses of held-out pairs that are less probable than this are no chance."""


def migrate(task: Task) -> Facts:
    """Write the re-fitted reward model, and return metrics before and after.

    Raises:
        InputError: the checkpoint, the data or a folder cannot be used; nothing is written.
        StampError: the checkpoint has a corrupt stamp.
    """
    _check_output(task)
    pairs = read_pairs(task.data)
    fitted, held_out = split(len(pairs), task.held_out)
    _check_stamp(task.checkpoint)
    config = load_config(task.pretrained)
    tokenizer = load_tokenizer(
        task.tokenizer or task.pretrained, "--tokenizer" if task.tokenizer else "--pretrained"
    )
    weights = read_weights(task.checkpoint)
    device = device_named(task.device)
    model = RewardModel(weights, config, task.pretrained, device, str(task.checkpoint))
    check_length(task.max_length, task.pretrained, model)
    open_part(task, model, tokenizer)
    features, resumed = compute(task, model, tokenizer, pairs)

    old = model.head
    weight = fit(features.hidden[fitted], old.weight[0])
    refitted = Head(weight.unsqueeze(0), torch.zeros(1, dtype=weight.dtype))
    # The pairwise loss is shift-invariant, so the bias keeps the mean score.
    drop = features.old[fitted].double().mean() - refitted(features.hidden[fitted]).mean()
    # Round to the checkpoint's dtype first, so that the metrics describe the written head.
    new = Head(weight.unsqueeze(0).to(old.weight.dtype), drop.view(1).to(old.bias.dtype))
    if not (new.weight.isfinite().all() and new.bias.isfinite().all()):
        raise InputError(
            f"the re-fitted head does not fit into the {old.weight.dtype} of {task.checkpoint}: "
            "cast the checkpoint to torch.float32 first"
        )

    hidden, before = features.hidden[held_out], features.old[held_out].double()
    unfitted, after = old(hidden), new(hidden)
    lost, won = changes(before, after)
    chance = chance_of(lost, won)
    _write(task, model.with_head(weights, new), tokenizer, model.prefix)
    return {
        "checkpoint": str(task.checkpoint),
        "output": str(task.output),
        "fitted_pairs": len(fitted),
        "held_out_pairs": len(held_out),
        **{
            name: {
                "mean_pooled": measure(before),
                "read_at_eos": measure(unfitted),
                "refitted": measure(after),
            }
            for name, measure in (("pair_accuracy", accuracy), ("held_out_loss", loss))
        },
        "held_out_change": {
            "lost": lost,
            "won": won,
            "probability_by_chance": chance,
            "worse": chance < LEVEL,
        },
        "fitting_loss": {
            "read_at_eos": loss(old(features.hidden[fitted])),
            "refitted": loss(new(features.hidden[fitted])),
        },
        "correlation": {
            "pearson": correlation(before.flatten(), after.flatten()),
            "spearman": correlation(ranks(before.flatten()), ranks(after.flatten())),
        },
        "examples": [
            {
                "line": pairs[pair].line,
                **{
                    f"{answer}_{form}": float(scores[place, column])
                    for column, answer in enumerate(ANSWERS)
                    for form, scores in (("before", before), ("after", after))
                },
            }
            for place, pair in enumerate(held_out[:5])
        ],
        "batches": len(batches_of(pairs, task.batch_size)),
        "batches_resumed": resumed,
    }


def _check_output(task: Task) -> None:
    if os.path.lexists(str(task.output)):
        raise InputError(f"{task.output} exists and is not overwritten: give another --output")
    if not task.output.parent.is_dir():
        raise InputError(f"there is no folder {task.output.parent} for --output")
    if task.checkpoint.is_dir() and task.checkpoint.samefile(task.output.parent):
        raise InputError(
            f"--output {task.output} would lie in the folder of the checkpoint: give another folder"
        )


def _check_stamp(checkpoint: Path) -> None:
    found, _ = stamp.read(checkpoint) if checkpoint.exists() else (None, "")
    if found is not None and found.pooling != stamp.MEAN_POOLED:
        raise InputError(
            f"{checkpoint} is stamped and was not trained mean-pooled ({found.form}), so there is "
            "nothing to migrate: use it as it is"
        )


def check_length(max_length: int, pretrained: str, model: RewardModel) -> None:
    """Raise ``InputError`` if the model has no positions for rows of that length."""
    positions = getattr(model.backbone.config, "max_position_embeddings", None)
    if positions is not None and max_length > positions:
        raise InputError(
            f"--max-length {max_length} is more than the {positions} positions of "
            f"{pretrained}: give the length that the model was trained with"
        )


def device_named(name: str) -> torch.device:
    """The device that ``--device`` names, or ``InputError``."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        item = torch.ones(1, device=name)
        item.cpu()  # as a meta tensor cannot
        return item.device
    except Exception as error:  # each backend has its own
        raise InputError(f"--device {name} cannot be used here: {error}") from error


def _write(task: Task, weights: Weights, tokenizer: Any, prefix: str) -> None:
    """Write the stamped checkpoint atomically, and delete the folder of intermediate results."""
    mark = stamp.Stamp(
        kind=stamp.REWARD_MODEL,
        pooling=stamp.EOS,
        **stamp.FRAME,
        end_token=tokenizer.eos_token_id,
        tokenizer=stamp.tokenizer_fingerprint(tokenizer),
        generation="G1",
        version=__version__,
        digest="",
    )
    stamp.put(weights, mark, prefix.rstrip("."))
    new = task.part / "checkpoint"
    try:
        atomic.put(new, partial(torch.save, weights))
        _check_output(task)  # again: the file may have appeared during the computation
        os.replace(str(new), str(task.output))
        shutil.rmtree(str(task.part))
    except (OSError, RuntimeError) as error:  # RuntimeError: torch's own writer
        raise InputError(f"cannot write {task.output}: {in_a_line(error)}") from error
