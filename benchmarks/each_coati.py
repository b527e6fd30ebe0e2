"""What the benchmarks share that measure several coatis, each in a process of its own."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple, Sequence

ROOT = Path(__file__).resolve().parent.parent
NAMED = f"LABEL=FOLDER[{os.pathsep}PYTHON]"


class Place(NamedTuple):
    """Where a coati is, and who can import it."""

    label: str
    folder: Path
    """The one that holds `coati/`."""
    python: str


class FailedError(Exception):
    """A process failed; the message is what it printed as errors."""


def place(item: str) -> Place:
    """What a command names as NAMED; this Python if it names none."""
    label, _, where = item.partition("=")
    folder, _, python = where.partition(os.pathsep)
    return Place(label, Path(folder).resolve(), python or sys.executable)


def run_elsewhere(script: str, at: Place, **environment: str) -> Any:
    """What `SCRIPT run FILE.json` writes in a process with one coati.

    Raises:
        FailedError: it failed.
    """
    clean = {key: value for key, value in os.environ.items() if not key.startswith("COATI_EXT")}
    path = os.pathsep.join(filter(None, [str(ROOT), str(at.folder), clean.get("PYTHONPATH", "")]))
    with tempfile.TemporaryDirectory() as work:
        file = Path(work) / "found.json"
        done = subprocess.run(
            [at.python, str(Path(script).resolve()), "run", str(file)],
            env={**clean, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
            cwd=work,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise FailedError(done.stderr.strip() or "no message")
        return json.loads(file.read_text())


def add_commands(parser: argparse.ArgumentParser, one: str, several: str) -> Any:
    """Declare `run OUT.json` and `compare`, and return the action for more commands."""
    commands = parser.add_subparsers(dest="command")
    here = commands.add_parser("run", help=f"{one} with the coati that can be imported")
    here.add_argument("out", type=Path, metavar="OUT.json")
    all_of_them = commands.add_parser("compare", help=f"{several} (default)")
    all_of_them.add_argument("coatis", nargs="*", metavar=NAMED)
    all_of_them.add_argument("--out", type=Path, default=Path("."), metavar="FOLDER")
    return commands


def places(items: Sequence[str]) -> Sequence[Place]:
    """What a command names, or the four stand-ins."""
    from coati_ext.testing import GENERATIONS, standin

    return [place(item) for item in items] or [
        Place("stand-in", standin(name), sys.executable) for name in GENERATIONS
    ]
