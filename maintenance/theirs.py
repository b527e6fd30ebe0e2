"""Run upstream's own tests and example scripts, the flag off beside the flag on.

    nox -s theirs -- --coati PATH [NAME ...]
    python maintenance/theirs.py --coati PATH [NAME ...]

PATH is a folder of upstream's that holds ``coati/``, ``tests/`` and ``examples/``; nothing in it is
changed. The second form uses this environment, which must have what that coati needs. A NAME picks
the tests and scripts whose names contain it.

Everything runs on the CPU and without a network: ``lifts/`` says how. What passes with the flag off
and fails with it on is listed, with its reason from ``theirs.toml`` if it is meant to. The exit
status is 1 if a reason is missing, or if one is given for something that passes. What fails with
the flag off, too, is listed apart; ``theirs.toml`` says why, where that is known.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

HERE = Path(__file__).resolve().parent
if str(HERE.parent) not in sys.path:
    sys.path.insert(0, str(HERE.parent))

from coati_ext._toml import parse_toml  # noqa: E402
from maintenance.their_scripts import Script, scripts_of  # noqa: E402

LIMIT = 900  # seconds that a file of tests or a script may take
FAILED = ("failure", "error")  # in pytest's file of results
Outcomes = Dict[str, str]
"""By the name of a test or script: an empty string if it passed, else what went wrong."""


@dataclass(frozen=True)
class Tree:
    """Where things are in a run."""

    coati: Path
    work: Path
    """Everything is written below this folder."""
    flag: str

    @property
    def hub(self) -> Path:
        """What stands in for the hub."""
        return self.work / "hub"

    @property
    def here(self) -> Path:
        """The working directory of tests and scripts."""
        return self.work / f"flag-{self.flag}"

    @property
    def environment(self) -> Dict[str, str]:
        """The environment of each process."""
        clean = {key: it for key, it in os.environ.items() if not key.startswith("COATI_EXT")}
        paths = [HERE / "lifts", self.coati, HERE.parent, *filter(None, [clean.get("PYTHONPATH")])]
        return {
            **clean,
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONHASHSEED": "0",
            "COATI_EXT": self.flag,
            "CUDA_VISIBLE_DEVICES": "",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "OMP_NUM_THREADS": "1",
            "HF_HOME": str(self.work / "home"),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "TRANSFORMERS_VERBOSITY": "error",
            "THEIR_HUB": str(self.hub),
        }


def run(command: Sequence[str], tree: Tree, log: Path) -> Optional[int]:
    """The exit status of a command whose output goes to a file; ``None`` if it does not end."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=str(tree.here),
            env=tree.environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            return None
        finally:  # and what it has started
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


# --- tests ---------------------------------------------------------------------------------------


def run_tests(tree: Tree, names: Sequence[str]) -> Outcomes:
    """Each file in a pytest of its own, so that one which hangs takes no other with it."""
    outcomes: Outcomes = {}
    for file in sorted((tree.coati / "tests").glob("test_*.py")):
        if not chosen(f"tests/{file.name}", names):
            continue
        results, log = tree.here / f"{file.stem}.xml", tree.here / f"{file.stem}.log"
        command = [sys.executable, "-m", "pytest", str(file), f"--junitxml={results}", "--tb=short"]
        options = [f"--rootdir={tree.coati}", "-p", "no:cacheprovider"]
        status = run([*command, *options], tree, log)
        if results.exists():
            found = dict(read_results(results))
            outcomes.update({f"tests/{file.name}::{name}": told for name, told in found.items()})
        if status is None or not results.exists():
            outcomes[f"tests/{file.name}"] = f"ended with {status}" if status else "does not end"
    return outcomes


def read_results(file: Path) -> Iterator[Tuple[str, str]]:
    """The tests in a file of pytest's, with what went wrong."""
    for case in ElementTree.parse(str(file)).iter("testcase"):
        told = [gist(it.get("message") or it.tag, it.text or "") for it in case if it.tag in FAILED]
        if case.find("skipped") is None:
            yield case.get("name", ""), told[0] if told else ""


# --- scripts -------------------------------------------------------------------------------------


def run_scripts(tree: Tree, names: Sequence[str]) -> Outcomes:
    """The example scripts in their order: what one writes another reads."""
    return {
        script.name: run_script(tree, script)
        for script in scripts_of(tree.coati, tree.hub, tree.here)
        if chosen(script.name, names)
    }


def run_script(tree: Tree, script: Script) -> str:
    """What went wrong, if anything."""
    log = tree.here / (re.sub(r"\W+", "-", script.name) + ".log")
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(script.ranks)]
    meeting = ["--master_addr", "127.0.0.1", "--master_port", free_port()]
    python = [sys.executable, *(launcher + meeting if script.ranks else [])]
    for folder in script.folders:
        folder.mkdir(parents=True, exist_ok=True)
    status = run([*python, str(script.file), *script.arguments], tree, log)
    if status == 0:
        return ""
    return "does not end" if status is None else last_error(log.read_text(errors="replace"))


def free_port() -> str:
    """A port of this machine that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def last_error(output: str) -> str:
    """The last line that names an error of the script, not of the launcher."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [
        line for line in lines if re.match(r"(\[rank\d\]: *)?[\w.]*(Error|Exception)\b", line)
    ]
    ours = [line for line in errors if "ChildFailedError" not in line]
    return first_line([*lines[-1:], *ours][-1]) if lines else "no output"


def gist(message: str, report: str) -> str:
    """The first line; of a traceback, such as that of a spawned process, the last two.

    The report has the whole message, each line after an E.
    """
    if "Traceback" not in message:
        return first_line(message)
    lines = [line[1:].strip() for line in report.splitlines() if line.startswith("E ")]
    return " -> ".join([line for line in lines if line][-2:])[:200]


def first_line(text: str) -> str:
    """Of a message."""
    return text.strip().splitlines()[0][:200] if text.strip() else "no message"


def chosen(name: str, names: Sequence[str]) -> bool:
    """Whether the command line picks this."""
    return not names or any(it in name for it in names)


# --- the comparison ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reason:
    """Why something fails."""

    name: str
    """A pattern for the whole name of a test or script."""
    reason: str
    told: str = ""
    """A pattern that is found in what it tells, so that no other failure passes for this one."""

    def explains(self, name: str, told: str) -> bool:
        """Whether this is why that fails."""
        return self.is_of(name) and bool(re.search(self.told, told))

    def is_of(self, name: str) -> bool:
        """Whether this is about that."""
        return bool(re.fullmatch(self.name, name))


@dataclass(frozen=True)
class Reasons:
    """All of ``theirs.toml``."""

    meant: Sequence[Reason]
    """Of what fails with the flag on, and not off."""
    cannot: Sequence[Reason]
    """Of what fails whatever the flag is."""


def read_reasons(file: Path) -> Reasons:
    """Read ``theirs.toml``."""
    content = parse_toml(file.read_text(encoding="utf-8"))
    return Reasons(*([Reason(**it) for it in content.get(key, [])] for key in ("meant", "cannot")))


def reason_of(name: str, told: str, reasons: Sequence[Reason]) -> str:
    """The reason that is given for what fails, if one is."""
    return next((it.reason for it in reasons if it.explains(name, told)), "")


def compare(off: Outcomes, on: Outcomes, reasons: Reasons) -> Tuple[int, List[str]]:
    """The exit status and the report."""
    passed = [name for name, told in off.items() if not told]
    lost = {name: on.get(name, "does not end") for name in passed}
    lost = {name: told for name, told in lost.items() if told}
    unexplained = [name for name in lost if not reason_of(name, lost[name], reasons.meant)]
    stale = [
        item.name
        for item in reasons.meant
        if any(map(item.is_of, passed)) and not any(map(item.is_of, lost))
    ]
    lines = [
        f"passed with the flag off: {len(passed)} of {len(off)}",
        f"passed with the flag on: {sum(not told for told in on.values())} of {len(on)}",
        f"passed off and not on: {len(lost)}, {len(unexplained)} of them without a reason",
    ]
    for name, told in lost.items():
        reason = reason_of(name, told, reasons.meant)
        lines += [f"  {name}: {told}", f"    {f'meant: {reason}' if reason else 'NO REASON'}"]
    lines += [f"passes, though a reason is given for it to fail: {pattern}" for pattern in stale]
    failed = {name: told for name, told in off.items() if told}
    lines += [f"failed with the flag off, too: {len(failed)}"] if failed else []
    for name, told in failed.items():
        reason = reason_of(name, told, reasons.cannot)
        lines += [f"  {name}: {told}", *([f"    {reason}"] if reason else [])]
    return int(bool(unexplained or stale)), lines


def main(arguments: Optional[Sequence[str]] = None, reasons: Path = HERE / "theirs.toml") -> int:
    """Run everything twice and compare."""
    parser = argparse.ArgumentParser(prog="theirs", description=__doc__.splitlines()[0])
    parser.add_argument("--coati", metavar="PATH", type=Path, required=True)
    parser.add_argument(
        "--work", metavar="FOLDER", type=Path, help="where to write, and to keep it"
    )
    parser.add_argument("names", metavar="NAME", nargs="*", help="only what contains one of these")
    options = parser.parse_args(arguments)
    coati = options.coati.resolve()
    if not (coati / "coati").is_dir():
        parser.error(f"{coati} holds no coati/")
    with tempfile.TemporaryDirectory(prefix="theirs-") as temporary:
        work = Path(options.work or temporary).resolve()
        work.mkdir(parents=True, exist_ok=True)
        outcomes: List[Outcomes] = []
        for flag in ("0", "1"):
            tree = Tree(coati, work, flag)
            tree.here.mkdir(exist_ok=True)
            if not tree.hub.exists():
                make = [sys.executable, str(HERE / "lifts" / "hub.py"), str(tree.hub)]
                subprocess.run(make, env=tree.environment, check=True)
            outcomes.append({**run_tests(tree, options.names), **run_scripts(tree, options.names)})
        known = read_reasons(reasons)
        status, lines = compare(*outcomes, known)
        lines += [
            f"not run: {name}: {reason_of(name, '', known.cannot)}"
            for name in (f"tests/{file.name}" for file in sorted((coati / "tests").glob("*.sh")))
            if chosen(name, options.names)
        ]
    print("\n".join(lines))
    return status


if __name__ == "__main__":
    sys.exit(main())
