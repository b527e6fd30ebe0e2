"""Run a module of ours in a process of its own and take the JSON of its last line."""

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
    """Run ``python -m module arguments`` and give the value that it printed last.

    Args:
        module: what to run.
        arguments: its arguments.
        flag: the ``COATI_EXT`` that it gets.
        paths: what comes first on its path, before everything that is on this process's.
        folder: where it runs.

    Raises:
        ScriptError: it failed; the message is the last line that it wrote.
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
