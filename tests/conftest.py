"""Fixtures that tests of several areas share; ``helpers`` has the functions."""

from __future__ import annotations

import fcntl
import gc
import os
import shutil
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Callable, Dict, Iterator, List

import hypothesis
import pytest

import coati_ext
from coati_ext.testing import pytest_option
from helpers import ROOT
from helpers.interpreters import Python, add_packages, new_environment
from helpers.upstreams import Upstream, folders_under_test, importable

# A busy machine is no failure; and the fixtures that examples share are made to be shared.
hypothesis.settings.register_profile(
    "shared", deadline=None, suppress_health_check=list(hypothesis.HealthCheck)
)
hypothesis.settings.load_profile("shared")


def pytest_addoption(parser: pytest.Parser) -> None:
    pytest_option.pytest_addoption(parser)
    parser.addoption(
        "--quick",
        action="store_true",
        help="nothing slow, and each test for one generation and one family, by turns",
    )
    parser.addoption(
        "--full", action="store_true", help="every case of the attacks, where a sample runs else"
    )
    parser.addoption("--but", help="a generation to leave out wherever a test has others as well")


def pytest_configure(config: pytest.Config) -> None:
    # Not in pyproject.toml, which pytest may not find beside `--coati PATH`.
    config.addinivalue_line("markers", "slow: builds wheels, starts launchers or trains a model")
    config.addinivalue_line("markers", "cuda: needs a CUDA device")
    config.addinivalue_line("markers", "generations(*names): only these have what is tested")
    config.addinivalue_line(
        "markers", "enough(*names, why): of the stand-ins these tell it all, for this reason"
    )
    config.addinivalue_line("markers", "attack: faults, kills, fuzzed input; --full has them all")
    config.addinivalue_line("markers", "once(why): on one stack is enough, for this reason")


def pytest_report_header(config: pytest.Config) -> str:
    return f"coati under test: {config.getoption('--coati') or 'the stand-ins'}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    passed = terminalreporter.getreports("passed")
    covered = [what for it in passed for name, what in it.user_properties if name == "covered"]
    if covered:
        terminalreporter.section("covered on CUDA")
        terminalreporter.write("".join(f"{what}\n" for what in covered))
    reports = [*passed, *terminalreporter.getreports("failed")]
    tallies = [what for it in reports for name, what in it.user_properties if name == "tally"]
    if tallies:
        terminalreporter.section("attacks: tried, got through")
        for harness in sorted({name for name, _, _ in tallies}):
            counts = [(tried, through) for name, tried, through in tallies if name == harness]
            tried, through = (sum(column) for column in zip(*counts))
            terminalreporter.write_line(f"{harness}: {tried}, {through}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "upstream" in metafunc.fixturenames:
        names = ["generations"]
        if not metafunc.config.getoption("--coati"):
            names.append("enough")
        markers = [metafunc.definition.get_closest_marker(name) for name in names]
        wanted = [set(marker.args) for marker in markers if marker]
        folders = [
            item
            for item in folders_under_test(metafunc.config)
            if all(item.generation in names for names in wanted)
        ]
        if len(folders) > 1:
            folders = [it for it in folders if it.generation != metafunc.config.getoption("--but")]
        metafunc.parametrize(
            "upstream", folders, ids=[item.generation for item in folders], indirect=True
        )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: List[pytest.Item]) -> None:
    if not config.getoption("--quick"):
        return
    cases: Dict[str, List[pytest.Item]] = {}
    for item in items:
        if not item.get_closest_marker("slow"):
            cases.setdefault(item.nodeid.split("[")[0], []).append(item)
    kept = {item for name, found in cases.items() for item in by_turns(name, found)}
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


def by_turns(name: str, cases: List[pytest.Item]) -> List[pytest.Item]:
    """Those of a test's cases that are for one generation and family, which depend on its name."""
    for parameter in ("upstream", "family"):
        values = {str(given_to(case, parameter)): None for case in cases}
        one = list(values)[zlib.crc32(name.encode()) % len(values)]
        cases = [case for case in cases if str(given_to(case, parameter)) == one]
    return cases


def given_to(case: pytest.Item, parameter: str) -> object:
    """What a test is parametrised with, if it is."""
    call = getattr(case, "callspec", None)
    return call.params.get(parameter) if call else None


def pytest_collection_finish() -> None:
    """Let no garbage collection, and no look at every object, see what the imports have made.

    ``enable()`` looks at every object for methods that it cannot reach, which would be most of what
    a test costs where hypothesis, transformers and some thousand tests are loaded.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _clean_settings(tmp_path: Path) -> Iterator[None]:
    """No flag, no file and no plugin of the machine reaches a test."""
    # Not the test's own monkeypatch, which has to be undone before what a test has set up first: a
    # path put before that of ``upstream`` would else bring its coati back for all later tests.
    with pytest.MonkeyPatch.context() as context:
        for name in [name for name in os.environ if name.startswith("COATI_EXT")]:
            context.delenv(name)
        context.chdir(tmp_path)
        yield


@pytest.fixture
def full(request: pytest.FixtureRequest) -> bool:
    """Whether an attack runs all its cases, rather than a sample."""
    return bool(request.config.getoption("--full"))


@pytest.fixture
def tally(record_property: Callable[[str, object], None]) -> Callable[[str, int, int], None]:
    """Record ``(harness, tried, got_through)``, which the end of the run adds up and shows."""
    return lambda *counts: record_property("tally", list(counts))


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


@pytest.fixture
def on(upstream: Upstream) -> Iterator[Upstream]:
    """Each coati under test, with the default patches on."""
    with coati_ext.applied():
        yield upstream


@pytest.fixture
def python(upstream: Upstream, tmp_path: Path) -> Python:
    """Fresh interpreters for the coati under test."""
    return Python(upstream.folder, tmp_path)


@pytest.fixture
def warm_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes that coati-ext's commands start are forked, which saves their imports."""
    from coati_ext.cli import child
    from helpers import processes

    monkeypatch.setattr(child, "subprocess", processes)


@pytest.fixture
def bare_python(tmp_path: Path) -> Python:
    """Fresh interpreters without any coati."""
    return Python(None, tmp_path)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The wheel of this source tree."""

    def build(folder: Path) -> None:
        pip = [sys.executable, "-m", "pip"]
        what = ["--no-deps", "-q", "-w", str(folder), str(ROOT)]
        subprocess.run([*pip, "wheel", *what], check=True)

    (file,) = made_once("wheel", build, tmp_path_factory, worker_id).glob("*.whl")
    return file


@pytest.fixture(scope="session", params=["wheel", "editable"])
def environment(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, worker_id: str
) -> Path:
    """The Python of a virtual environment with coati-ext, on top of this one's packages."""

    def build(folder: Path) -> None:
        python = new_environment(folder / "venv")
        what = [str(request.getfixturevalue("wheel"))]
        if request.param == "editable":
            source = folder / "source"
            ignore = shutil.ignore_patterns(".git", ".nox", ".venv", "__pycache__", ".*_cache")
            shutil.copytree(str(ROOT), str(source), ignore=ignore)
            what = ["-e", str(source)]
        pip = [sys.executable, "-m", "pip", "--python", str(python)]
        subprocess.run([*pip, "install", "-q", "--no-deps", *what], check=True)
        # Only now, or pip would find the coati-ext of the environment that runs the tests.
        add_packages(folder / "venv")

    folder = made_once(f"with-{request.param}", build, tmp_path_factory, worker_id)
    return folder / "venv" / "bin" / "python"


def made_once(
    name: str, build: Callable[[Path], None], factory: pytest.TempPathFactory, worker_id: str
) -> Path:
    """A folder that the first worker to ask for it has filled, for all of them."""
    base = factory.getbasetemp()
    base = base if worker_id == "master" else base.parent
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = base / f"{name}.done"
        if not done.exists():
            (base / name).mkdir()
            build(base / name)
            done.touch()
    return base / name


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
