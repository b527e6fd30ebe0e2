"""``coati-ext migrate``: re-fit the value head of a mean-pooled G1 reward model at EOS."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any, Dict, List, Tuple

from coati_ext.cli.reward_model import add_checkpoint, add_reading, given
from coati_ext.cli.screen import table, write

Facts = Dict[str, Any]


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    add_checkpoint(parser, data="pairs to fit to: JSON Lines of prompt, chosen, rejected")
    parser.add_argument("--output", required=True, metavar="FILE", help="the new checkpoint")
    add_reading(parser, rows="pairs", held_out="measures")


def facts(options: Namespace) -> Tuple[int, Facts]:
    """Re-fit the head.

    Raises:
        ConfigError: torch or transformers is missing, or a number is out of range.
        InputError: the checkpoint, the data or a folder cannot be used.
    """
    common = given("migrate", options)
    from coati_ext.checkpoints.migrate import Task, migrate

    return 0, migrate(Task(output=Path(options.output), **common))


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
