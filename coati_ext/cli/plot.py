"""``coati-ext plot``: the curves of trainings, from their TensorBoard logs, as one picture."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any, Dict, Tuple

from coati_ext.cli.screen import table, telling, write
from coati_ext.errors import ConfigError, InputError
from coati_ext.launch.installation import version_of

Facts = Dict[str, Any]


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="a log_dir, or an event file of TensorBoard",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("curves.png"),
        metavar="FILE",
        help="the picture (default: curves.png)",
    )


def facts(options: Namespace) -> Tuple[int, Facts]:
    """Read the runs and draw them.

    Raises:
        ConfigError: tensorboard or matplotlib is missing.
        InputError: a run has no event file, or none of them has a curve of coati-ext.
    """
    for package in ("tensorboard", "matplotlib"):
        if version_of(package) is None:
            raise ConfigError(f"plot needs {package}: pip install 'coati-ext[plot]'")
    from coati_ext.curves.draw import draw, panels_of
    from coati_ext.curves.events import read, runs_in

    with telling() as tell:
        runs = read(runs_in(options.runs), tell)
        stages = panels_of(runs)
        if not stages:
            others = sorted({name for run in runs.values() for name in run})
            raise InputError(
                f"no curve of coati-ext in {', '.join(map(str, options.runs))}, only "
                f"{', '.join(others[:5]) or 'nothing'}: expected log_dirs of runs with COATI_EXT=1"
            )
        tell(f"drawing {options.out}")
        options.out.parent.mkdir(parents=True, exist_ok=True)
        draw(runs, options.out)
    names = [f"{stage}/{it}" for stage, panels in stages for one in panels for it in one.curves]
    last = {
        name: {run: curves[name][-1][1] for run, curves in runs.items() if name in curves}
        for name in names
    }
    return 0, {"file": str(options.out), "runs": list(runs), "last": last}


def view(found: Facts) -> None:
    """Print :func:`facts`."""
    runs = found["runs"]
    rows = [
        [name, *(f"{values[run]:.4g}" if run in values else "" for run in runs)]
        for name, values in found["last"].items()
    ]
    write(table(["last value", *runs], rows), "", f"Drawn in {found['file']}")
