"""``coati-ext demo``: the same training script, run with the flag off and on.

It trains a tiny reward model and a tiny policy with the installed coati, or with a stand-in if none
is installed. ``coati_ext.demo`` says what is measured.
"""

from __future__ import annotations

import shutil
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any, Dict, Tuple

from coati_ext.cli.child import Run, side_by_side
from coati_ext.cli.screen import table, write
from coati_ext.cli.some_coati import some_coati
from coati_ext.errors import ConfigError
from coati_ext.launch.installation import version_of
from coati_ext.patching.patch import GENERATIONS

Facts = Dict[str, Any]
_FLAGS = {"off": "0", "on": "1"}


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("--generation", choices=GENERATIONS, help="use a stand-in for this generation of coati")
    add("--family", default="gpt2", help="family of the tiny models (default: gpt2)")
    add(
        "--pairs",
        type=int,
        default=1500,
        metavar="N",
        help="preference pairs for the reward model (default: 1500)",
    )
    add(
        "--episodes", type=int, default=8, metavar="N", help="episodes of each PPO run (default: 8)"
    )
    add("--seeds", type=int, default=3, metavar="N", help="PPO runs, a seed each (default: 3)")
    add("--seed", type=int, default=0, help="the first seed (default: 0)")
    add(
        "--out",
        type=Path,
        default=Path("coati-ext-demo"),
        metavar="FOLDER",
        help="where the pictures go (default: coati-ext-demo)",
    )


def facts(options: Namespace) -> Tuple[int, Facts]:
    """Train twice, flag off and on, at the same time.

    Raises:
        ConfigError: torch or transformers is missing.
        ScriptError: the training failed.
    """
    for package in ("torch", "transformers"):
        if version_of(package) is None:
            raise ConfigError(f"the demo needs {package}: pip install 'coati-ext[demo]'")
    coati = some_coati(options.generation)
    names = ("family", "pairs", "episodes", "seeds", "seed")
    arguments = tuple(str(getattr(options, name)) for name in names)
    found = side_by_side(
        "coati_ext.cli.demo_script",
        [Run(f"patches {state:3}", flag, arguments) for state, flag in _FLAGS.items()],
        coati=coati.folder,
        apart=True,  # upstream's trainers write logs
    )
    from coati_ext.demo.summary import summary, verdicts

    runs = dict(zip(_FLAGS, found))
    figures = {state: summary(run) for state, run in runs.items()}
    pictures = []
    if version_of("matplotlib") is not None:
        from coati_ext.demo.draw import draw

        pictures = [str(file) for file in draw(runs, figures, options.out)]
    return 0, {
        "coati": coati.words,
        "generation": coati.generation,
        **{name: getattr(options, name) for name in names},
        "figures": figures,
        "verdicts": verdicts(figures["off"], figures["on"]),
        "runs": runs,
        "pictures": pictures,
    }


def view(found: Facts) -> None:
    """Print :func:`facts`."""
    write(
        f"{found['coati']}, generation {found['generation']}: tiny {found['family']} models, a "
        f"reward model trained on {found['pairs']} pairs, PPO of {found['episodes']} episodes.",
        "",
    )
    off, on = (found["figures"][state] for state in _FLAGS)
    words = "; ".join([*["{:.1f}"] * found["seeds"]])
    rows = [
        ("a reward moves with its padding by up to (sd of rewards)", "moved", "{:.2g}"),
        ("a reward in PPO and as trained differ by up to (sd)", "differs", "{:.2g}"),
        ("pairs right, in rows of reward-model training", "accuracy", "{:.3f}"),
        ("pairs right, as PPO scores them", "in_ppo", "{:.3f}"),
        ("pairs that change order in between", "swapped", "{:.1%}"),
        ("a value moves before any update by up to", "value_moved", "{:.2g}"),
        ("values that move by more than the clip", "clipped", "{:.0%}"),
        ("words of an answer, before PPO", "start", "{:.1f}"),
        ("words after PPO was told to be brief (mean)", "end", "{:.1f}"),
    ]
    cells = [[told, form.format(off[key]), form.format(on[key])] for told, key, form in rows]
    cells.append(["  each seed", *(words.format(*it["ends"]) for it in (off, on))])
    write(table(["", "COATI_EXT=0", "COATI_EXT=1"], cells), "", *found["verdicts"], "")
    seconds = [run["cpu_seconds"] for run in found["runs"].values()]
    write(f"measured here, in {seconds[0]:.0f} and {seconds[1]:.0f} seconds of a CPU core.")
    if found["pictures"]:
        write(f"pictures: {', '.join(found['pictures'])}")
    else:
        write("pictures: none without matplotlib (pip install 'coati-ext[demo]')")
    start = "torchrun" if shutil.which("torchrun") else "python"
    write(
        "",
        "next:",
        "  coati-ext doctor --live              the bugs of the coati here, and whether it fits",
        "  coati-ext show                       which token a reward and a value are read at",
        f"  {f'COATI_EXT=1 {start} YOUR_SCRIPT.py':35}  your training, with the patches on",
    )
