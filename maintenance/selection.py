"""Which tests are run for a mutant: those that ran its line in one run of them all."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import List, Set, Tuple
from xml.etree import ElementTree

from coverage import CoverageData
from mutants import Mutant, spans

SLOW_S = 20.0  # such tests only where no other runs the line
GENERATIONS = ("G1", "G2", "G3", "G4")


def measure(root: Path, out: Path, workers: int) -> None:
    """Run all tests once, and note which test runs which line, and for how long."""
    config = out / "coveragerc"
    config.write_text("[run]\nsource = coati_ext, patches\nomit = coati_ext/testing/*\n")
    coverage = ["--cov", f"--cov-config={config}", "--cov-context=test", "--cov-report="]
    durations = f"--junitxml={out / 'durations.xml'}"
    subprocess.run(
        [sys.executable, "-m", "pytest", "-n", str(workers), "-q", *coverage, durations],
        cwd=str(root),
        env={**os.environ, "COVERAGE_FILE": str(out / "coverage"), "OMP_NUM_THREADS": "1"},
        check=True,
    )


class Selection:
    """The tests for each mutant."""

    def __init__(self, root: Path, coverage: Path, durations: Path, limit: float) -> None:
        self.root, self.limit = root, limit
        self.data = CoverageData(str(coverage))
        self.data.read()
        self.seconds = {
            (case.get("classname"), case.get("name")): float(case.get("time", 0))
            for case in ElementTree.parse(durations).iter("testcase")
            if case.find("skipped") is None
        }
        self.lines_run = Counter(
            test
            for file in self.data.measured_files()
            for contexts in self.data.contexts_by_lineno(file).values()
            for test in {context.split("|")[0] for context in contexts} - {""}
        )
        self.tests = {test for test in self.lines_run if _junit_name(test) in self.seconds}

    def tests_for(self, mutant: Mutant) -> Tuple[List[str], int]:
        """Tests, and how many run the line, be there time for them or not.

        Time that is left is for the tests in files that name the module, which may run it in
        processes of their own.
        """
        tree = ast.parse((self.root / mutant.file).read_text("utf-8"))
        running = self._running(mutant.file, lines_that_tell(tree, mutant.line))
        naming = self._naming(Path(mutant.file)) - running
        chosen, spent = [], 0.0
        for test in (*self._ordered(running), *self._ordered(naming)):
            if not chosen or spent + self.time(test) <= self.limit:
                chosen.append(test)
                spent += self.time(test)
        return chosen, len(running)

    def _ordered(self, tests: Set[str]) -> List[str]:
        """One test of each function, then one of each generation, then the others.

        First among them come those that are fast and run little else.
        """
        quick = [test for test in tests if self.time(test) < SLOW_S] or tests
        turns: Counter[Tuple[str, str]] = Counter()
        ranked = []
        for cost, test in sorted((self.time(test) * self.lines_run[test], test) for test in quick):
            function, _, parameters = test.partition("[")
            generation = next((name for name in GENERATIONS if name in parameters), "")
            ranked.append((turns[function, generation], turns[function, ""] > 0, cost, test))
            turns.update({(function, generation), (function, "")})
        return [test for *_, test in sorted(ranked)]

    def time(self, test: str) -> float:
        """Seconds of a test in the run of them all."""
        return self.seconds[_junit_name(test)]

    def _running(self, file: str, lines: Set[int]) -> Set[str]:
        measured = [name for name in self.data.measured_files() if f"/{name}".endswith(f"/{file}")]
        contexts = self.data.contexts_by_lineno(measured[0]) if measured else {}
        found = {test for line in lines for test in contexts.get(line, ())}
        return {test.split("|")[0] for test in found} & self.tests

    def _naming(self, file: Path) -> Set[str]:
        name = file.parent.name if file.stem == "__init__" else file.stem
        files = {test.split("::")[0] for test in self.tests}
        naming = {item for item in files if name in (self.root / item).read_text("utf-8")}
        return {test for test in self.tests if test.split("::")[0] in naming}


def lines_that_tell(tree: ast.Module, line: int) -> Set[int]:
    """The lines whose tests may notice a change: those of its statement, or what it is there for.

    Importing runs the rest: a default or a decorator is there for the body of its function, a
    constant for every function.
    """
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    bodies = {node: range(node.body[0].lineno, (node.end_lineno or 0) + 1) for node in functions}
    around = [node for node in functions if spans(node, line)]
    if not around:
        return {number for body in bodies.values() for number in body}
    if line not in bodies[around[-1]]:
        return set(bodies[around[-1]])
    found = (0, 0)
    for node in ast.walk(around[-1]):
        if isinstance(node, (ast.stmt, ast.excepthandler)):
            body = getattr(node, "body", None)
            end = max(node.lineno, body[0].lineno - 1) if body else node.end_lineno or 0
            if node.lineno <= line <= end:
                found = max(found, (node.lineno, end))
    return set(range(found[0], found[1] + 1))


def _junit_name(test: str) -> Tuple[str, str]:
    head, bracket, parameters = test.partition("[")
    file, *classes, name = head.split("::")
    return ".".join([file[: -len(".py")].replace("/", "."), *classes]), name + bracket + parameters
