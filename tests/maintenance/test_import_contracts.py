"""The import contracts notice what they are there for: a copy of the source with a line more."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from helpers import ROOT

pytest.importorskip("importlinter", reason="import-linter needs Python 3.10")


@pytest.fixture
def checked(tmp_path):
    """Run import-linter on a copy to which a line was added; its exit status and what it told."""
    ignored = shutil.ignore_patterns("standins", "__pycache__")
    for folder in ("coati_ext", "patches", "maintenance"):
        shutil.copytree(str(ROOT / folder), str(tmp_path / folder), ignore=ignored)
    shutil.copy(str(ROOT / "pyproject.toml"), str(tmp_path))

    def check(file="", line=""):
        if file:
            with (tmp_path / file).open("a", encoding="utf-8") as stream:
                stream.write(f"\n{line}\n")
        command = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"
        done = subprocess.run(
            [sys.executable, "-c", command],
            cwd=str(tmp_path),
            env={"PYTHONPATH": str(tmp_path), "COLUMNS": "200"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert not done.stderr, done.stderr
        return done.returncode, done.stdout

    return check


def test_the_source_keeps_every_contract(checked):
    status, told = checked()
    assert (status, told.count(" KEPT")) == (0, 7)


@pytest.mark.parametrize(
    ("file", "line", "broken"),
    [
        ("coati_ext/plan.py", "import torch", "No torch before it is needed"),
        ("patches/rollout/sites.py", "import coati.models", "No coati and no ColossalAI"),
        ("coati_ext/report.py", "from coati_ext import errors, switch", "No circle"),
        ("coati_ext/patching/patch.py", "from coati_ext import settings", "From the command line"),
        ("coati_ext/plugins.py", "import patches.rollout", "No module knows a patch"),
        ("patches/rollout/steps.py", "from coati_ext import plan", "A patch has what"),
        ("patches/rollout/steps.py", "import patches.provenance", "A patch does not know another"),
    ],
)
def test_a_forbidden_import_breaks_its_contract(checked, file, line, broken):
    status, told = checked(file, line)
    assert status == 1
    assert any(row.startswith(broken) and "BROKEN" in row for row in told.splitlines()), told


def test_an_import_inside_a_function_is_no_import_of_the_module(checked):
    status, told = checked("coati_ext/plan.py", "def later():\n    import torch")
    assert status == 0, told
