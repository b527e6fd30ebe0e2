"""How coati-ext is installed, here and for the launchers' Pythons, and what is not patched.

An armed process is one that will be patched at start-up.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Iterable, List, Optional, Sequence

import coati_ext

STARTUP_FILES = ("coati_ext.start", "coati_ext.pth")
PROBE_LIMIT = 60  # seconds

# The working directory goes last: its files run in the job, but not where one only looks.
_PROBE = """
import sys
sys.path[:] = [*filter(None, sys.path), ""]
import importlib.util, json
armed = "coati_ext.launch.watch" in sys.modules
found = importlib.util.find_spec("coati_ext")
if found: import coati_ext
version = coati_ext.__version__ if found else None
print(json.dumps({"armed": armed, "version": version}))
"""


@dataclass(frozen=True)
class Gap:
    """Processes that ``COATI_EXT`` does not patch."""

    what: str
    why: str
    way_out: str
    here: bool
    """Whether this process is one of them."""


@dataclass(frozen=True)
class Interpreter:
    """A Python interpreter, as reported by a process started with ``COATI_EXT=1``."""

    armed: bool
    version: Optional[str]
    """Its version of coati-ext, or ``None`` if coati-ext is not importable."""
    error: str = ""
    """Why the process did not start."""

    def problem(self, version: str) -> str:
        """Why it would not run the patches of this version, or an empty string."""
        if self.error:
            return f"it does not start: {self.error}"
        if self.version is None:
            return "coati-ext is not installed for it"
        if not self.armed:
            return "it runs no start-up file of coati-ext"
        if self.version != version:
            return f"it has coati-ext {self.version}, and this is {version}"
        return ""


def kind() -> str:
    """How coati-ext is installed: ``wheel``, ``editable`` or ``checkout``."""
    if (Path(coati_ext.__file__).parent / "patches" / "__init__.py").is_file():
        return "wheel"
    try:
        distribution("coati-ext")
    except PackageNotFoundError:
        return "checkout"
    return "editable"


def site_directories() -> List[Path]:
    """The site directories, whose start-up files this Python runs."""
    if sys.flags.no_site:
        return []
    names = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    names += getattr(site, "getsitepackages", list)()
    if site.ENABLE_USER_SITE:
        names.append(site.getusersitepackages())
    return [Path(name) for name in dict.fromkeys(names)]


def startup_file() -> Optional[Path]:
    """The installed start-up file, or ``None`` if there is none and no process will be armed."""
    return _startup_file_in(site_directories())


def startup_reason(file: Path) -> str:
    """The purpose of the start-up file, and the Python versions that run it."""
    arms = "arms every process of a job, workers included, while COATI_EXT is set"
    if file.suffix == ".start":
        return f"{arms}; Python 3.15 and newer run it and skip the line of the .pth beside it"
    return f"{arms}; Python before 3.15 runs the one line of a .pth"


def gaps() -> List[Gap]:
    """The processes that ``COATI_EXT`` does not patch, and why; this installation comes first."""
    install = "pip install coati-ext (not --target, not --user) into this environment"
    found = []
    file = startup_file()
    if file is None and not sys.flags.no_site:
        user = None if site.ENABLE_USER_SITE else _startup_file_in([_user_site()])
        aside = _startup_file_in(Path(name) for name in sys.path if name)
        if user is not None:
            why = (
                f"{user} is in the user site directory, which -s, -I, PYTHONNOUSERSITE or a "
                "virtual environment without system packages switches off here"
            )
        elif aside is not None:
            why = (
                f"{aside} is on sys.path but in no site directory, as pip install --target or "
                "PYTHONPATH put it, and Python runs start-up files of site directories only"
            )
        elif kind() == "checkout":
            why = "a checkout on sys.path has no start-up file"
        else:
            why = "no start-up file was installed with it"
        found.append(Gap(f"every process of {sys.executable}", why, install, here=True))
    if file is not None and file.parent == _user_site():
        found.append(
            Gap(
                "python -s, python -I and PYTHONNOUSERSITE",
                f"they skip the user site directory, where {file.name} is",
                install,
                here=False,
            )
        )
    found.append(
        Gap(
            "python -S",
            "it runs no start-up file at all",
            "leave out -S, or call coati_ext.enable() in the script",
            here=bool(sys.flags.no_site),
        )
    )
    return found


def interpreter_of(command: str) -> Optional[str]:
    """The Python that runs a command on PATH, or ``None`` if its shebang line does not tell."""
    file = shutil.which(command)
    if file is None or is_python(file):
        return file
    with open(file, "rb") as stream:
        first, second, *_ = [*stream.read(4096).decode("utf-8", "replace").splitlines(), "", ""]
    words = first[2:].split() if first.startswith("#!") else []
    if second.startswith("'''exec' "):  # pip writes this if the path is too long for a shebang
        words = shlex.split(second[len("'''exec' ") :])
    if words and Path(words[0]).name == "env":
        words = [word for word in words[1:] if not word.startswith("-")]
    return shutil.which(words[0]) if words and is_python(words[0]) else None


def is_python(file: str) -> bool:
    """Whether the file name is that of a Python interpreter."""
    return re.match(r"(python|pypy)[\d.]*(\.exe)?$", Path(file).name) is not None


def probe(python: str, flags: Sequence[str] = ()) -> Interpreter:
    """Start a Python with ``COATI_EXT=1`` and report whether it is armed."""
    try:
        done = subprocess.run(
            [python, *flags, "-c", _PROBE],
            env={**os.environ, "COATI_EXT": "1"},
            capture_output=True,
            text=True,
            check=True,
            timeout=PROBE_LIMIT,
        )
        told = json.loads(done.stdout.splitlines()[-1])
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip() or str(error)).splitlines()[-1]
        return Interpreter(False, None, last)
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired) as error:
        return Interpreter(False, None, f"{type(error).__name__}: {error}")
    return Interpreter(told["armed"], told["version"])


def version_of(package: str) -> Optional[str]:
    """The installed version of a distribution, without importing it."""
    try:
        return distribution(package).version
    except PackageNotFoundError:
        return None


def _user_site() -> Path:
    return Path(site.getusersitepackages())


def _startup_file_in(folders: Iterable[Path]) -> Optional[Path]:
    names = STARTUP_FILES if sys.version_info >= (3, 15) else STARTUP_FILES[1:]
    files = (folder / name for folder in folders for name in names)
    return next((file for file in files if file.is_file()), None)
