"""``nox -s theirs``: upstream's own tests, the flag off beside the flag on."""

from __future__ import annotations

import os
import re
import textwrap

import pytest

from coati_ext.testing import standin
from helpers import ROOT, script

THEIR_TESTS = """
import os, subprocess, sys

def armed():
    return "coati_ext._startup" in sys.modules

def test_same():
    pass

def test_armed():
    assert not armed(), "the flag is on"

def test_children_are_armed():
    script = "import sys; sys.exit('coati_ext._startup' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0

def test_never():
    raise ValueError("no network")

def test_coati_is_the_trees():
    import importlib.util
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    assert importlib.util.find_spec("coati").origin.startswith(root)
"""
REASONS = """
[[meant]]
name = 'tests/test_a\\.py::test_(armed|children.*)'
reason = "the flag is told of"

[[cannot]]
name = '.*\\.sh'
reason = "it needs many GPUs"

[[cannot]]
name = 'tests/.*::test_never'
reason = "it needs a network"
"""


@pytest.fixture(scope="module")
def command():
    with script(ROOT / "maintenance" / "theirs.py") as module:
        yield module


@pytest.fixture
def run(command, tmp_path, capsys):
    """Run the command on a tree with these tests and reasons; gives the status and what it told."""
    tree, work = tmp_path / "tree", tmp_path / "work"
    (tree / "tests").mkdir(parents=True)
    (tree / "tests" / "__init__.py").touch()
    os.symlink(str(standin("G4") / "coati"), str(tree / "coati"))
    (work / "hub").mkdir(parents=True)  # what is not asked for a model needs none

    def run_it(tests, reasons):
        (tree / "tests" / "test_a.py").write_text(textwrap.dedent(tests))
        (tree / "tests" / "train.sh").write_text("exit 0\n")
        (tmp_path / "reasons.toml").write_text(reasons)
        before = sorted(tree.rglob("*"))
        arguments = ["--coati", str(tree), "--work", str(work)]
        status = command.main(arguments, tmp_path / "reasons.toml")
        assert sorted(tree.rglob("*")) == before
        return status, capsys.readouterr().out

    return run_it


@pytest.mark.once("how processes are started; nothing of a stack")
def test_what_passes_off_and_fails_on_is_listed_with_its_reason(run):
    status, told = run(THEIR_TESTS, REASONS)
    lines = told.splitlines()
    assert status == 0
    assert lines[:3] == [
        "passed with the flag off: 4 of 5",
        "passed with the flag on: 2 of 5",
        "passed off and not on: 2, 0 of them without a reason",
    ]
    assert "  tests/test_a.py::test_armed: AssertionError: the flag is on" in told
    assert lines.count("    meant: the flag is told of") == 2
    assert "  tests/test_a.py::test_never: ValueError: no network\n    it needs a network" in told
    assert lines[-1] == "not run: tests/train.sh: it needs many GPUs"


def test_a_name_picks(command):
    assert command.chosen("tests/test_a.py", [])
    assert command.chosen("tests/test_a.py", ["rm", "test_a"])
    assert not command.chosen("tests/test_a.py", ["rm"])


@pytest.mark.parametrize(
    ("off", "on", "status", "told"),
    [
        ({"a": ""}, {"a": ""}, 0, "passed off and not on: 0"),
        ({"a": ""}, {}, 1, "  a: does not end"),
        ({"a": ""}, {"a": "E"}, 1, "NO REASON"),
        ({"a": "E"}, {"a": "E"}, 0, "failed with the flag off, too: 1"),
        ({"a": "E"}, {"a": ""}, 0, "passed with the flag on: 1 of 1"),
        ({"b": ""}, {"b": "E"}, 0, "meant: because"),
        ({"b": ""}, {"b": "F"}, 1, "NO REASON"),
        ({"b": ""}, {"b": ""}, 1, "passes, though a reason is given for it to fail: b.*"),
        ({"b": "E"}, {"b": "E"}, 0, "failed with the flag off, too: 1"),
    ],
)
def test_the_comparison(command, off, on, status, told):
    meant = [command.Reason("b.*", "because", told="E")]
    reasons = command.Reasons(meant, [])
    found, lines = command.compare(off, on, reasons)
    assert found == status
    assert any(told in line for line in lines)


def test_the_last_error_of_a_script_is_its_own(command):
    output = "Error at all\n[rank1]: ValueError: five\nx\ntorch.elastic.ChildFailedError: \ntail\n"
    assert command.last_error(output) == "[rank1]: ValueError: five"
    assert command.last_error("one\ntwo\n") == "two"
    assert command.last_error("") == "no output"


def test_the_gist_of_a_spawned_process_is_its_own_error(command):
    message = "spawn.ProcessRaisedException: \nTraceback:\n [+2 more lines]"
    report = "test.py:7: in f\nE   Traceback:\nE       assert equal(a)\nE   ValueError\nE   \nout"
    assert command.gist(message, report) == "assert equal(a) -> ValueError"
    assert command.gist("KeyError: 1\n2", "E   no") == "KeyError: 1"


def test_every_reason_in_the_file_is_a_pattern_with_a_reason(command):
    reasons = command.read_reasons(ROOT / "maintenance" / "theirs.toml")
    assert reasons.meant
    for item in (*reasons.meant, *reasons.cannot):
        assert item.reason
        re.compile(item.name)
        re.compile(item.told)
