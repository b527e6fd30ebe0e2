"""``coati-ext calibrate``: the mean and spread of reference answers, into the stamp."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import Any, Dict, Tuple

from coati_ext.cli.reward_model import add_checkpoint, add_reading, given
from coati_ext.cli.screen import table, write

Facts = Dict[str, Any]


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    told = "JSON Lines of prompt and chosen, or of chosen_input_ids: the reference answers"
    add_checkpoint(parser, data=told)
    parser.add_argument(
        "--generation",
        choices=("G2", "G3", "G4"),
        help="of the coati that trained it, if the checkpoint has no stamp",
    )
    add_reading(parser, rows="answers", held_out="verifies")


def facts(options: Namespace) -> Tuple[int, Facts]:
    """Measure, and write the stamp.

    Raises:
        ConfigError: torch or transformers is missing, or a number is out of range.
        InputError: the checkpoint or the data cannot be used.
    """
    common = given("calibrate", options)
    from coati_ext.checkpoints.calibrate import Task, calibrate

    return 0, calibrate(Task(generation=options.generation or "", **common))


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
