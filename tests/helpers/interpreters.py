"""Fresh interpreters, and environments for them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any, Dict, Optional

from helpers import ROOT


def free_port() -> str:
    """A port of this machine that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


class Python:
    """Fresh interpreters in which a coati is importable."""

    def __init__(self, folder: Optional[Path], cwd: Path, executable: str = sys.executable) -> None:
        self.folder = folder
        self.cwd = cwd
        self.executable = executable

    def environment(self, **variables: str) -> Dict[str, str]:
        paths = [str(ROOT), *([str(self.folder)] if self.folder else [])]
        clean = {key: value for key, value in os.environ.items() if not key.startswith("COATI_EXT")}
        return {**clean, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", **variables}

    def __call__(
        self, *arguments: str, check: bool = True, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [self.executable, *arguments],
            env=self.environment(**variables),
            cwd=str(self.cwd),
            capture_output=True,
            text=True,
            check=False,
        )
        return _checked(done) if check else done

    def warm(
        self, *arguments: str, check: bool = True, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """The same in a process that is forked from one that has imported torch and the like.

        For what is not about the start of an interpreter, of which this has only ``PYTHONPATH``.
        """
        from helpers.processes import run_warm  # which imports torch

        done = run_warm(arguments, self.environment(**variables), self.cwd)
        return _checked(done) if check else done

    def cli(self, *arguments: str, **variables: Any) -> subprocess.CompletedProcess[str]:
        return self("-m", "coati_ext", *arguments, **variables)


def _checked(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    if done.returncode:
        raise AssertionError(f"exit {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def new_environment(folder: Path, *, packages: bool = False, system: bool = False) -> Path:
    """The Python of a new virtual environment without pip, with this one's packages or without."""
    builder = venv.EnvBuilder(with_pip=False, symlinks=True, system_site_packages=system)
    builder.create(str(folder))
    if packages:
        add_packages(folder)
    return folder / "bin" / "python"


def add_packages(folder: Path) -> None:
    """Give a virtual environment the packages of this one, and the commands of its launchers."""
    site = next((folder / "lib").glob("python*")) / "site-packages"
    here = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site / "zz_base.pth").write_text("\n".join(here) + "\n")
    for name, module, function in (
        ("torchrun", "torch.distributed.run", "main"),
        ("colossalai", "colossalai.cli", "cli"),
    ):
        command = folder / "bin" / name
        command.write_text(
            f"#!{folder / 'bin' / 'python'}\nfrom {module} import {function}\n{function}()\n"
        )
        command.chmod(0o755)
