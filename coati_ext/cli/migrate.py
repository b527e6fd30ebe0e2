"""``coati-ext migrate``: re-fit the value head of a mean-pooled G1 reward model at EOS."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any, Dict, List, Tuple

from coati_ext.cli.screen import table, write
from coati_ext.errors import ConfigError
from coati_ext.launch.installation import version_of

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
        help="pairs to fit to: JSON Lines of prompt, chosen, rejected",
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="the new checkpoint")
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
    parser.add_argument("--batch-size", type=int, default=8, help="pairs at a time (default: 8)")
    parser.add_argument(
        "--held-out",
        type=float,
        default=0.1,
        help="share of the pairs that only measures (default: 0.1)",
    )
    parser.add_argument(
        "--device", default="auto", help="where to run (default: CUDA where there is one)"
    )


def facts(options: Namespace) -> Tuple[int, Facts]:
    """Re-fit the head.

    Raises:
        ConfigError: torch or transformers is missing, or a number is out of range.
        InputError: the checkpoint, the data or a folder cannot be used.
    """
    require_usable("migrate", options)
    from coati_ext.checkpoints.migrate import Task, migrate

    task = Task(
        checkpoint=Path(options.checkpoint),
        pretrained=options.pretrained,
        data=Path(options.data),
        output=Path(options.output),
        tokenizer=options.tokenizer or "",
        max_length=options.max_length,
        batch_size=options.batch_size,
        held_out=options.held_out,
        device=options.device,
    )
    return 0, migrate(task)


def require_usable(command: str, options: Namespace) -> None:
    """Raise ``ConfigError`` if a package is missing or a number is out of range."""
    for package in ("torch", "transformers"):
        if version_of(package) is None:
            raise ConfigError(f"{command} needs {package}: run it where the model was trained")
    for name in ("max_length", "batch_size"):
        if getattr(options, name) < 1:
            told = f"--{name.replace('_', '-')} {getattr(options, name)}"
            raise ConfigError(f"{told}: expected a whole number, 1 or more")


def view(found: Facts) -> None:
    """Print :func:`facts`."""
    names = {
        "mean_pooled": "mean-pooled, as it was",
        "read_at_eos": "old head at the end token",
        "refitted": "re-fitted head",
    }
    rows = [
        [words, f"{found['pair_accuracy'][name]:.3f}", f"{found['held_out_loss'][name]:.3f}"]
        for name, words in names.items()
    ]
    write(
        f"The value head of {found['checkpoint']}, re-fitted on {found['fitted_pairs']} pairs, "
        f"{found['held_out_pairs']} held out.",
        "",
        table(["", "pair accuracy, held out", "pairwise loss, held out"], rows),
        "",
    )
    correlation = {
        name: "none (a score does not vary)" if value is None else f"{value:.3f}"
        for name, value in found["correlation"].items()
    }
    write(
        f"Old and new scores of held-out answers correlate by {correlation['pearson']} (Pearson) "
        f"and {correlation['spearman']} (Spearman); their mean is kept.",
        "",
        table(
            ["line", "chosen, before", "after", "rejected, before", "after"],
            [
                [
                    str(row["line"]),
                    *(
                        f"{row[f'{a}_{f}']:.3f}"
                        for a in ("chosen", "rejected")
                        for f in ("before", "after")
                    ),
                ]
                for row in found["examples"]
            ],
        ),
        "",
        f"Written to {found['output']}.",
        "",
        *_verdict(found["held_out_change"]),
    )


def _verdict(change: Facts) -> List[str]:
    """Whether the re-fitted head ranks pairs worse than the mean-pooled one, and what to do."""
    told = (
        f"Of the held-out pairs, {change['lost']} that were ranked right no longer are, and "
        f"{change['won']} that were not now are: by chance, so many losses or more have a "
        f"probability of {change['probability_by_chance']:.2g}."
    )
    if not change["worse"]:
        return [f"{told} That is no sign of a loss."]
    return [
        f"{told} So the re-fitted head is worse than the mean-pooled one was.",
        "Train it on before you use it: start the script that trains reward models from this "
        "checkpoint, with COATI_EXT=1.",
    ]
