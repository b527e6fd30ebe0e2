"""What commands that read a reward model's checkpoint are given: which, and how it is read."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any, Dict

from coati_ext.errors import ConfigError
from coati_ext.launch.installation import version_of


def add_checkpoint(parser: ArgumentParser, data: str) -> None:
    """Declare the checkpoint, what its backbone was made from, and the data.

    Args:
        parser: of the command.
        data: what the data are, for the help.
    """
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="the reward model: a file, or a folder of shards"
    )
    parser.add_argument(
        "--pretrained",
        required=True,
        metavar="NAME",
        help="the model that the backbone was made from",
    )
    parser.add_argument("--data", required=True, metavar="FILE", help=data)


def add_reading(parser: ArgumentParser, rows: str, held_out: str) -> None:
    """Declare how the rows are made and computed.

    Args:
        parser: of the command.
        rows: what the rows of the data are, for the help.
        held_out: what those that are held out do.
    """
    parser.add_argument(
        "--tokenizer",
        metavar="NAME",
        help="the one of its training (default: that of --pretrained)",
    )
    parser.add_argument(
        "--max-length",
        type=int,
        default=512,
        help="most tokens of a row, as in its training (default: 512)",
    )
    parser.add_argument("--batch-size", type=int, default=8, help=f"{rows} at a time (default: 8)")
    parser.add_argument(
        "--held-out",
        type=float,
        default=0.1,
        help=f"share of the {rows} that only {held_out} (default: 0.1)",
    )
    parser.add_argument(
        "--device", default="auto", help="where to run (default: CUDA where there is one)"
    )


def given(command: str, options: Namespace) -> Dict[str, Any]:
    """The fields of a task that every such command has.

    Raises:
        ConfigError: torch or transformers is missing, or a number is out of range.
    """
    for package in ("torch", "transformers"):
        if version_of(package) is None:
            raise ConfigError(f"{command} needs {package}: run it where the model was trained")
    for name in ("max_length", "batch_size"):
        if getattr(options, name) < 1:
            told = f"--{name.replace('_', '-')} {getattr(options, name)}"
            raise ConfigError(f"{told}: expected a whole number, 1 or more")
    return {
        "checkpoint": Path(options.checkpoint),
        "pretrained": options.pretrained,
        "data": Path(options.data),
        "tokenizer": options.tokenizer or "",
        "max_length": options.max_length,
        "batch_size": options.batch_size,
        "held_out": options.held_out,
        "device": options.device,
    }
