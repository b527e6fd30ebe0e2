"""Run one of our modules in a new process and read JSON from its last line of output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any, Optional

from coati_ext.errors import ScriptError

# ``python -m`` and ``-c`` put the working directory first; see ``coati_ext.cli.folder``.
_START = """
import sys
sys.path[:] = filter(None, sys.path)
import runpy
from coati_ext.cli.folder import on_path
with on_path(sys.argv.pop(1)):
    runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


def run_module(
    module: str,
    *arguments: str,
    flag: str,
    coati: Optional[str] = None,
    folder: Optional[str] = None,
) -> Any:
    """Run ``python -m module arguments`` and return the JSON value of its last line.

    Args:
        module: the module to run.
        arguments: its arguments.
        flag: its ``COATI_EXT``.
        coati: the folder whose coati it finds first, by default the working directory of this one.
        folder: its working directory.

    Raises:
        ScriptError: it failed; the message is its last line of output.
    """
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", _START, coati or os.getcwd(), module, *arguments],
        env={**os.environ, "COATI_EXT": flag, "PYTHONPATH": path},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise ScriptError(f"{module} failed with COATI_EXT={flag or 'unset'}: {last}")
    return json.loads(done.stdout.splitlines()[-1])
