"""The coati under test: a real one with --coati PATH (or COATI_SOURCE), else each stand-in."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional

import hypothesis
import pytest

import coati_ext
from coati_ext.patching.patch import GENERATIONS
from coati_ext.patching.source import generation_of
from coati_ext.testing import standin
from coati_ext.testing.pytest_option import pytest_addoption as pytest_addoption

ROOT = Path(__file__).resolve().parent.parent

# A busy machine is no failure; and the fixtures that examples share are made to be shared.
hypothesis.settings.register_profile(
    "shared", deadline=None, suppress_health_check=list(hypothesis.HealthCheck)
)
hypothesis.settings.load_profile("shared")


def pytest_configure(config: pytest.Config) -> None:
    # Not in pyproject.toml, which pytest may not find beside `--coati PATH`.
    config.addinivalue_line("markers", "slow: builds wheels, starts launchers or trains a model")
    config.addinivalue_line("markers", "cuda: needs a CUDA device")
    config.addinivalue_line("markers", "generations(*names): only these have what is tested")


def pytest_report_header(config: pytest.Config) -> str:
    return f"coati under test: {config.getoption('--coati') or 'the stand-ins'}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    passed = terminalreporter.getreports("passed")
    covered = [what for it in passed for name, what in it.user_properties if name == "covered"]
    if covered:
        terminalreporter.section("covered on CUDA")
        terminalreporter.write("".join(f"{what}\n" for what in covered))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "upstream" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("generations")
        wanted = marker.args if marker else GENERATIONS
        folders = [
            item for item in folders_under_test(metafunc.config) if item.generation in wanted
        ]
        metafunc.parametrize(
            "upstream", folders, ids=[item.generation for item in folders], indirect=True
        )


@dataclass(frozen=True)
class Upstream:
    """A folder that holds a coati."""

    folder: Path
    generation: str

    @property
    def package(self) -> Path:
        return self.folder / "coati"


def folders_under_test(config: pytest.Config) -> List[Upstream]:
    path = config.getoption("--coati")
    if not path:
        return [Upstream(standin(name), name) for name in GENERATIONS]
    folder = Path(path).resolve()
    folder = folder.parent if folder.name == "coati" else folder
    return [Upstream(folder, generation_of(folder / "coati"))]


def forget_coati() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "coati"]:
        del sys.modules[name]


@contextlib.contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Make the coati in a folder the importable one, unimported, and forget it afterwards."""
    forget_coati()
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        coati_ext.disable()
        sys.path.remove(str(folder))
        forget_coati()


@pytest.fixture(autouse=True)
def _clean_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No flag, no file and no plugin of the machine reaches a test."""
    for name in [name for name in os.environ if name.startswith("COATI_EXT")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def upstream(request: pytest.FixtureRequest) -> Iterator[Upstream]:
    """Each coati under test, importable but not imported, in this process."""
    with importable(request.param.folder):
        yield request.param


@pytest.fixture
def newest(request: pytest.FixtureRequest) -> Iterator[Upstream]:
    """The newest coati under test, where its generation makes no difference."""
    folder = folders_under_test(request.config)[-1]
    with importable(folder.folder):
        yield folder


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
        if check and done.returncode:
            raise AssertionError(f"exit {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def cli(self, *arguments: str, **variables: Any) -> subprocess.CompletedProcess[str]:
        return self("-m", "coati_ext", *arguments, **variables)


@pytest.fixture
def python(upstream: Upstream, tmp_path: Path) -> Python:
    """Fresh interpreters for the coati under test."""
    return Python(upstream.folder, tmp_path)


@pytest.fixture
def bare_python(tmp_path: Path) -> Python:
    """Fresh interpreters without any coati."""
    return Python(None, tmp_path)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this source tree."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "wheel", "--no-deps", "-q", "-w", str(folder), str(ROOT)], check=True)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="session", params=["wheel", "editable"])
def environment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a virtual environment with coati-ext, on top of this one's packages."""
    folder = tmp_path_factory.mktemp(request.param) / "venv"
    python = new_environment(folder)
    what = [str(request.getfixturevalue("wheel"))]
    if request.param == "editable":
        source = folder.parent / "source"
        ignore = shutil.ignore_patterns(".git", ".nox", ".venv", "__pycache__", ".*_cache")
        shutil.copytree(str(ROOT), str(source), ignore=ignore)
        what = ["-e", str(source)]
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    subprocess.run([*pip, "install", "-q", "--no-deps", *what], check=True)
    # Only now, or pip would find the coati-ext of the environment that runs the tests.
    add_packages(folder)
    return python


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


@pytest.fixture
def installed(environment: Path, request: pytest.FixtureRequest, tmp_path: Path) -> Python:
    """Interpreters of that environment, with the newest coati under test on the path."""
    upstream = folders_under_test(request.config)[-1]
    python = Python(upstream.folder, tmp_path, str(environment))
    inherited = python.environment

    def without_checkout(**variables: str) -> Dict[str, str]:
        return {**inherited(), "PYTHONPATH": str(upstream.folder), **variables}

    python.environment = without_checkout  # type: ignore[method-assign]
    return python
