"""Mutation testing: change one operator, number or condition at a time; do the tests notice?

`nox -s mutation` runs a fixed sample, outside of what every change must pass. Each mutant gets a
fork of one process that has torch and transformers imported already, the tests that run its line,
and a time limit. Results go to a file of JSON lines, from which a run that was broken off goes on.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import pytest
import tomllib
from mutants import AREAS, Mutant, sample
from selection import Selection, measure

SAMPLE = 300
TESTS_S = 60.0  # of tests for one mutant, by their durations in the whole run
LIMIT = 3  # times these seconds, and some to begin with, until a mutant has timed out
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.toml")
WARM = (
    *("hypothesis", "numpy", "pluggy", "rich.console", "torch", "tqdm", "wrapt"),
    *("transformers.generation", "transformers.models.gpt2.modeling_gpt2"),
    "transformers.models.llama.modeling_llama",
)


class Runner:
    """A private copy of the checkout, and at most one process that tests it."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.folder, self.copy = folder, folder / "checkout"
        ignore = shutil.ignore_patterns(".git", ".nox", ".venv", "__pycache__", ".*_cache")
        shutil.copytree(root, self.copy, ignore=ignore)
        for package in ("coati_ext", "patches"):
            compileall.compile_dir(str(self.copy / package), quiet=1)
        self.mutant: Optional[Mutant] = None
        self.pid = 0

    def start(self, mutant: Optional[Mutant], tests: Sequence[str], limit: float) -> None:
        """Test a mutant, until a test fails, or the copy as it is."""
        (self.folder / "failed").write_text("")
        self.mutant, self.tests, self.limit, self.started = mutant, tests, limit, time.time()
        if mutant is not None:
            self.original = (self.copy / mutant.file).read_text("utf-8")
            self._write(mutant.file, mutant.text)
        self.pid = os.fork()
        if not self.pid:
            code = 3
            try:
                code = self._test(["-x"] if mutant else [])
            finally:
                os._exit(code)

    def _test(self, options: Sequence[str]) -> int:
        os.setsid()
        log = os.open(str(self.folder / "log"), os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(self.copy)
        sys.path[0] = str(self.copy)
        sys.modules["__main__"] = ModuleType("__main__")  # not for tests' own processes to import
        files = sorted({test.split("::")[0] for test in self.tests})
        plain = ["-q", "-p", "no:cacheprovider", "--basetemp", str(self.folder / "temporary")]
        return int(pytest.main([*files, *plain, *options], plugins=[self]))

    def _write(self, file: str, text: str) -> None:
        path = self.copy / file
        path.write_text(text, "utf-8")
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
            compiled.unlink()  # or it might hide the mutant

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: List[pytest.Item]) -> None:
        """As pytest's plugin: leave the chosen tests, in their order."""
        places = {test: place for place, test in enumerate(self.tests)}
        kept = [item for item in items if item.nodeid in places]
        items[:] = sorted(kept, key=lambda item: places[item.nodeid])
        found = Path(sys.modules["coati_ext"].__file__ or "")
        assert found.is_relative_to(self.copy), f"tests another copy: {found}"

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """As pytest's plugin: note which test failed."""
        if report.failed:
            with (self.folder / "failed").open("a") as stream:
                stream.write(report.nodeid + "\n")

    def outcome(self) -> Optional[str]:
        """How the tests ended; ``None`` while they run."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid and time.time() - self.started < self.limit:
            return None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # processes that a failed test left, too
        if not pid:
            os.waitpid(self.pid, 0)
        self.pid = 0
        if self.mutant is not None:
            self._write(self.mutant.file, self.original)
        code = os.waitstatus_to_exitcode(status) if pid else 0
        # 3 is an error of pytest's own, 4 that conftest.py cannot be imported, 5 that no test ran.
        ended = {0: "survived", 3: "error", 5: "survived"}.get(code, "killed")
        return ended if pid else "timed out"

    def failed(self) -> List[str]:
        """The tests that failed."""
        return (self.folder / "failed").read_text().splitlines()


def run(
    mutants: Sequence[Mutant], selection: Selection, runners: Sequence[Runner]
) -> Iterator[Dict[str, Any]]:
    """The results of mutants, as they come."""
    waiting = list(mutants)
    available: Dict[str, int] = {}
    while waiting or any(runner.pid for runner in runners):
        for runner in runners:
            outcome = runner.outcome() if runner.pid else None
            if outcome and runner.mutant:
                told = asdict(runner.mutant)
                del told["text"]
                yield {
                    "id": runner.mutant.id,
                    **told,
                    "outcome": outcome,
                    "killer": next(iter(runner.failed()), ""),
                    "tests": len(runner.tests),
                    "of": available[runner.mutant.id],
                    "seconds": round(time.time() - runner.started, 1),
                }
            if waiting and not runner.pid:
                mutant = waiting.pop(0)
                tests, available[mutant.id] = selection.tests_for(mutant)
                runner.start(mutant, tests, 30 + LIMIT * sum(map(selection.time, tests)))
        time.sleep(0.05)


def summary(results: Sequence[Dict[str, Any]], unreliable: Sequence[str]) -> str:
    """The figures, and whatever was not killed by a test, with the reason where it is known."""
    reasons, lines = equivalents(), []
    for area in (*AREAS, "in all"):
        mine = [result for result in results if area in (result["area"], "in all")]
        counts = Counter(result["outcome"] for result in mine)
        killed = counts["killed"] + counts["timed out"]
        alike = sum(result["outcome"] == "survived" and _name(result) in reasons for result in mine)
        lines.append(
            f"{area}: {len(mine)} mutants, {counts['killed']} killed, {counts['timed out']} timed "
            f"out, {counts['survived']} survived ({alike} known to be equivalent), "
            f"{counts['error']} errors; {_share(killed, len(mine))} killed, "
            f"{_share(killed, len(mine) - alike)} of those not known to be equivalent"
        )
    lines += [f"kills nothing, since it fails without a mutant: {test}" for test in unreliable]
    for result in results:
        if result["outcome"] != "killed":
            lines += [
                f"\n{result['outcome']}: {result['operator']}, {result['tests']} of "
                f"{result['of']} tests",
                *(f"equivalent: {reasons[key]}" for key in [_name(result)] if key in reasons),
                *(f"--- {result['file']}", f"+++ {result['file']}", f"@@ -{result['line']} @@"),
                *(f"-{result['before']}", f"+{result['after']}"),
            ]
    return "\n".join(lines) + "\n"


def equivalents() -> Dict[Tuple[str, str, str], str]:
    """Why some mutants cannot be killed, as somebody found."""
    known = tomllib.loads(EQUIVALENT.read_text("utf-8")).get("equivalent", [])
    return {(item["file"], item["before"], item["after"]): item["why"] for item in known}


def _name(result: Dict[str, Any]) -> Tuple[str, str, str]:
    return result["file"], result["before"], result["after"]


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def warm_up() -> None:
    """Import what the forks need, nothing that is mutated; and let no failure be shrunk."""
    os.environ.update(OMP_NUM_THREADS="1", PYTHONDONTWRITEBYTECODE="1")
    sys.dont_write_bytecode = True
    for name in WARM:
        importlib.import_module(name)
    assert not {"coati_ext", "patches", "coati"} & set(sys.modules)
    from hypothesis import Phase, settings

    # The profile of conftest.py takes over what it does not say itself.
    settings.register_profile("mutants", database=None, phases=(Phase.explicit, Phase.generate))
    settings.load_profile("mutants")


def main() -> None:
    """Sample, run what has no result yet, and tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1], help="a checkout")
    parser.add_argument("--coverage", type=Path, help="data of a run with --cov-context=test")
    parser.add_argument("--durations", type=Path, help="JUnit's XML of that run")
    parser.add_argument("--sample", type=int, default=SAMPLE)
    parser.add_argument("--seconds", type=float, default=TESTS_S, help="of tests for one mutant")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--again", action="store_true", help="test survivors anew")
    parser.add_argument("--out", type=Path, required=True, help="the folder of the results")
    given = parser.parse_args()
    root, out = given.root.resolve(), given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    mutants = sample(root, given.sample)
    coverage = given.coverage or out / "coverage"
    durations = given.durations or out / "durations.xml"
    if not durations.exists():
        measure(root, out, given.workers)
    selection = Selection(root, coverage, durations, given.seconds)
    record = out / "results.jsonl"
    lines = record.read_text("utf-8").splitlines() if record.exists() else []
    results = {result["id"]: result for result in map(json.loads, lines)}
    if given.again:
        known = equivalents()
        results = {
            key: item
            for key, item in results.items()
            if item["outcome"] == "killed" or _name(item) in known
        }
    rest = [mutant for mutant in mutants if mutant.id not in results]
    warm_up()
    with tempfile.TemporaryDirectory() as folder, record.open("a", encoding="utf-8") as stream:
        runners = [Runner(root, Path(folder, str(number))) for number in range(given.workers)]
        for number, result in enumerate(run(rest, selection, runners), 1):
            results[result["id"]] = result
            print(json.dumps(result), file=stream, flush=True)
            print(f"{number} of {len(rest)}: {result['outcome']}, {_name(result)}", flush=True)
        ours = [results[mutant.id] for mutant in mutants]
        killers = sorted({result["killer"] for result in ours} - {""})
        runners[0].start(None, killers, 30 + LIMIT * sum(map(selection.time, killers)))
        while not runners[0].outcome():
            time.sleep(0.5)
        told = summary(ours, runners[0].failed())
    (out / "summary.txt").write_text(told, "utf-8")
    print(told)


if __name__ == "__main__":
    main()
