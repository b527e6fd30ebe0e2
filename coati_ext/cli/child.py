"""Run one of our modules in a new process and read JSON from its last line of output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any, Optional, Sequence

from coati_ext.errors import ScriptError


def run_module(
    module: str, *arguments: str, flag: str, paths: Sequence[str] = (), folder: Optional[str] = None
) -> Any:
    """Run ``python -m module arguments`` and return the JSON value of its last line.

    Args:
        module: the module to run.
        arguments: its arguments.
        flag: its ``COATI_EXT``.
        paths: put before this process's ``sys.path``.
        folder: its working directory.

    Raises:
        ScriptError: it failed; the message is its last line of output.
    """
    path = os.pathsep.join(filter(None, [*paths, *sys.path]))
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
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
