"""Run our modules in new processes, show how far they are, and read what they have found.

A module prints JSON as its last line of output, and calls :func:`tell` on the way.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, List, NamedTuple, Optional, Sequence, Tuple

from rich.console import Console

from coati_ext.errors import ScriptError
from coati_ext.settings import FROZEN, collect, freeze

_PROGRESS = "_COATI_EXT_PROGRESS"  # names the file that a child tells its progress in
_EVERY = 0.2  # seconds

# ``python -m`` and ``-c`` put the working directory first; see ``coati_ext.cli.folder``.
_START = """
import sys
sys.path[:] = filter(None, sys.path)
import runpy
from coati_ext.cli.folder import on_path
with on_path(sys.argv.pop(1)):
    runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


class Run(NamedTuple):
    """One run of a module."""

    name: str
    flag: str
    """Its ``COATI_EXT``."""
    arguments: Tuple[str, ...]


def run_module(
    module: str,
    *arguments: str,
    flag: str,
    coati: Optional[str] = None,
    folder: Optional[str] = None,
    progress: str = "",
) -> Any:
    """Run ``python -m module arguments`` and return the JSON value of its last line.

    Args:
        module: the module to run.
        arguments: its arguments.
        flag: its ``COATI_EXT``.
        coati: the folder whose coati it finds first, by default the working directory of this one.
        folder: its working directory; the settings are read in that of this process.
        progress: the file in which it tells how far it is.

    Raises:
        ConfigError: a file of settings is unreadable.
        ScriptError: it failed; the message is what its output ends with.
    """
    path = os.pathsep.join(filter(None, sys.path))
    settings = {} if folder is None else {FROZEN: freeze(collect())}
    done = subprocess.run(
        [sys.executable, "-c", _START, coati or os.getcwd(), module, *arguments],
        env={**os.environ, "COATI_EXT": flag, "PYTHONPATH": path, _PROGRESS: progress, **settings},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        told = _last_words(done.stderr)
        raise ScriptError(f"{module} failed with COATI_EXT={flag or 'unset'}: {told}")
    return json.loads(done.stdout.splitlines()[-1])


def _last_words(output: str) -> str:
    """The last error of an output, whose message may have several lines."""
    lines = output.strip().splitlines() or ["no message"]
    errors = [n for n, line in enumerate(lines) if re.match(r"[\w.]+(Error|Exception)\b", line)]
    return "\n".join(lines[errors[-1] if errors else -1 :])


def side_by_side(
    module: str, runs: Sequence[Run], coati: Optional[str] = None, apart: bool = False
) -> List[Any]:
    """Run a module in several processes at once, and show on a terminal how far each is.

    Args:
        module: the module to run.
        runs: what is different.
        coati: as for :func:`run_module`.
        apart: whether each works in a folder of its own, which is gone afterwards.

    Raises:
        ScriptError: one of them failed.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    screen = Console(stderr=True)
    columns = (
        TextColumn("{task.fields[run]}"),
        BarColumn(24),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with TemporaryDirectory() as place, Progress(
        *columns, console=screen, transient=True, disable=not screen.is_terminal
    ) as bars, ThreadPoolExecutor(len(runs)) as pool:
        waiting, shown = [], []
        for number, run in enumerate(runs):
            work, file = Path(place, str(number)), Path(place, f"{number}.json")
            work.mkdir()
            shown.append((bars.add_task("starting", total=1, run=run.name), file))
            waiting.append(
                pool.submit(
                    run_module,
                    module,
                    *run.arguments,
                    flag=run.flag,
                    coati=coati,
                    folder=str(work) if apart else None,
                    progress=str(file),
                )
            )
        while wait(waiting, timeout=_EVERY).not_done:
            for task, file in shown:
                # Not there yet, or half written.
                with suppress(OSError, ValueError):
                    done, total, what = json.loads(file.read_text(encoding="utf-8"))
                    bars.update(task, completed=done, total=total, description=what)
        return [item.result() for item in waiting]


def tell(done: int, total: int, what: str) -> None:
    """Say, in a child, how many steps of how many are done, and which comes next."""
    file = os.environ.get(_PROGRESS)
    if file:
        Path(file).write_text(json.dumps([done, total, what]), encoding="utf-8")
