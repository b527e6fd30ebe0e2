"""``coati-ext calibrate``: the mean and spread of reference answers, into the stamp."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any, Dict, Tuple

from coati_ext.cli.migrate import require_usable
from coati_ext.cli.screen import table, write

Facts = Dict[str, Any]


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="the reward model: a file, or a folder of shards"
    )
    parser.add_argument(
        "--pretrained",
        required=True,
        metavar="NAME",
        help="the model that the backbone was made from",
    )
    parser.add_argument(
        "--data",
        required=True,
        metavar="FILE",
        help="JSON Lines of prompt and chosen, or of chosen_input_ids: the reference answers",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="NAME",
        help="the one of its training (default: that of --pretrained)",
    )
    parser.add_argument(
        "--generation",
        choices=("G2", "G3", "G4"),
        help="of the coati that trained it, if the checkpoint has no stamp",
    )
    parser.add_argument(
        "--max-length",
        type=int,
        default=512,
        help="most tokens of a row, as in its training (default: 512)",
    )
    parser.add_argument("--batch-size", type=int, default=8, help="answers at a time (default: 8)")
    parser.add_argument(
        "--held-out",
        type=float,
        default=0.1,
        help="share of the answers that only verifies (default: 0.1)",
    )
    parser.add_argument(
        "--device", default="auto", help="where to run (default: CUDA where there is one)"
    )


def facts(options: Namespace) -> Tuple[int, Facts]:
    """Measure, and write the stamp.

    Raises:
        ConfigError: torch or transformers is missing, or a number is out of range.
        InputError: the checkpoint or the data cannot be used.
    """
    require_usable("calibrate", options)
    from coati_ext.checkpoints.calibrate import Task, calibrate

    task = Task(
        checkpoint=Path(options.checkpoint),
        pretrained=options.pretrained,
        data=Path(options.data),
        tokenizer=options.tokenizer or "",
        generation=options.generation or "",
        max_length=options.max_length,
        batch_size=options.batch_size,
        held_out=options.held_out,
        device=options.device,
    )
    return 0, calibrate(task)


def view(found: Facts) -> None:
    """Print :func:`facts`."""
    held_out, replaced = found["held_out"], found["replaced"]
    measured = [f"{found['mean']:.4f}", f"{found['spread']:.4f}"]
    rows = [["before", *measured, *_numbers(held_out["before"])]]
    rows += [["after", f"{0:.4f}", f"{1:.4f}", *_numbers(held_out["after"])]]
    write(
        f"Rewards of {found['measured_answers']} reference answers by {found['checkpoint']}, and "
        f"of {found['held_out_answers']} held out:",
        "",
        table(["", "mean", "spread", "mean, held out", "spread, held out"], rows),
        "",
        f"The mean of the held-out answers is uncertain by {held_out['standard_error']:.3f}. Mean "
        "and spread are in the checkpoint's stamp, for reward_scaling.mode = reference; no weight "
        "has changed.",
    )
    if replaced is not None:
        write(
            f"They replace a mean of {replaced['mean']:.4f} and a spread of "
            f"{replaced['spread']:.4f}, of {replaced['count']} answers."
        )


def _numbers(level: Facts) -> Tuple[str, str]:
    return f"{level['mean']:.4f}", f"{level['spread']:.4f}"
