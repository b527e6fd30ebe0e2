"""The coati under test: a real one with --coati PATH (or COATI_SOURCE), else each stand-in."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
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
    config.addinivalue_line("markers", "generations(*names): only these have what is tested")


def pytest_report_header(config: pytest.Config) -> str:
    return f"coati under test: {config.getoption('--coati') or 'the stand-ins'}"


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
