"""``coati-ext demo``: the same training script, run with the flag off and on.

It trains a tiny reward model with the installed coati, or with a stand-in if none is installed. It
then scores held-out pairs right-padded, as in unpatched training, and left-padded, as generation
needs them.
"""

from __future__ import annotations

import tempfile
from argparse import ArgumentParser, Namespace
from typing import Any, Dict, List, Tuple

from coati_ext.cli.child import run_module
from coati_ext.cli.screen import table, write
from coati_ext.errors import CoatiNotFoundError, ConfigError
from coati_ext.launch.installation import version_of
from coati_ext.patching.patch import GENERATIONS
from coati_ext.patching.source import find_coati

Facts = Dict[str, Any]


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--generation",
        choices=GENERATIONS,
        help="use the stand-in of this generation, even if a coati is installed",
    )
    parser.add_argument("--family", default="gpt2", help="the backbone (default: gpt2)")
    parser.add_argument("--pairs", type=int, default=600, help="training pairs (default: 600)")
    parser.add_argument("--held-out", type=int, default=200, help="held-out pairs (default: 200)")
    parser.add_argument("--epochs", type=int, default=1, help="passes over them (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and data (default: 0)")


def facts(options: Namespace) -> Tuple[int, Facts]:
    """Train twice, flag off and on.

    Raises:
        ConfigError: torch or transformers is missing.
        ScriptError: the training failed.
    """
    for package in ("torch", "transformers"):
        if version_of(package) is None:
            raise ConfigError(f"the demo needs {package}: pip install 'coati-ext[demo]'")
    coati, generation, path = _coati(options)
    arguments = [options.family, options.pairs, options.held_out, options.epochs, options.seed]
    results: List[Facts] = []
    for flag in ("0", "1"):
        with tempfile.TemporaryDirectory() as folder:  # upstream's trainers write logs
            run = run_module(
                "coati_ext.cli.demo_script",
                *map(str, arguments),
                flag=flag,
                coati=path,
                folder=folder,
            )
        results.append({"flag": flag, **run})
    return 0, {
        "coati": coati,
        "generation": generation,
        "family": options.family,
        "pairs": options.pairs,
        "held_out": options.held_out,
        "runs": results,
    }


def _coati(options: Namespace) -> Tuple[str, str, str]:
    """A description of the coati used, its generation, and the folder that it is in."""
    from coati_ext.testing import standin

    if not options.generation:
        try:
            coati = find_coati()
            return f"The coati at {coati.root}", coati.generation, str(coati.root.parent)
        except CoatiNotFoundError:
            options.generation = "G4"
    words = "No coati of yours, but coati-ext's own stand-in for one, which has upstream's defects"
    return words, options.generation, str(standin(options.generation))


def view(found: Facts) -> None:
    """Print :func:`facts`."""
    write(
        f"{found['coati']}, generation {found['generation']}: {found['family']} trained by coati's "
        f"RewardModelTrainer on {found['pairs']} pairs, {found['held_out']} held out.",
        "",
    )
    rows = [
        [
            "COATI_EXT=" + run["flag"],
            f"{run['accuracy_right_padded']:.3f}",
            f"{run['accuracy_left_padded']:.3f}",
            f"{run['padding_shift']:.2g}",
            f"{run['reward_spread']:.2g}",
            f"{run['end_tokens_kept']:.0%}",
            f"{run['seconds']:.0f}",
        ]
        for run in found["runs"]
    ]
    heads = [
        "",
        "pair accuracy, right-padded",
        "left-padded",
        "reward moved by padding",
        "(sd of rewards)",
        "rows ending in EOS",
        "seconds",
    ]
    write(table(heads, rows))
    off, on = found["runs"]
    write(
        "",
        f"Padding one and the same row in another way moves its score by up to "
        f"{off['padding_shift']:.2g} with the flag off and {on['padding_shift']:.2g} with it on.",
    )
