"""How coati-ext is installed, which Pythons it arms, and what of a job the flag cannot reach."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from coati_ext.launch import installation
from helpers import ROOT
from helpers.interpreters import new_environment
from helpers.upstreams import folders_under_test


@pytest.mark.slow
def test_doctor_tells_what_the_flag_cannot_reach(wheel, tmp_path, request):
    python = new_environment(tmp_path / "env", packages=True, system=True)
    aside = tmp_path / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(aside)]
    subprocess.run([*pip, str(wheel)], check=True)
    upstream = str(folders_under_test(request.config)[-1].folder)
    bare = {"PATH": str(python.parent), "HOME": str(tmp_path)}

    def doctor(*flags, **variables):
        done = subprocess.run(
            [str(python), *flags, "-m", "coati_ext", "doctor", "--json"],
            env={**bare, **variables},
            cwd=str(tmp_path),
            capture_output=True,
            text=True,
        )
        assert done.stdout, done.stderr
        facts = json.loads(done.stdout)
        assert "gaps" in facts, facts
        assert facts["gaps"][-1]["what"] == "python -S"
        return facts, facts["gaps"][0]

    both = os.pathsep.join([upstream, str(aside)])
    facts, gap = doctor(PYTHONPATH=both)  # pip install --target
    assert gap["here"]
    assert facts["startup_file"] is None
    assert f"{aside / 'coati_ext.pth'} is on sys.path but in no site directory" in gap["why"]
    assert gap["why"] in facts["verdict"]
    for item in facts["launchers"]:
        assert item["python"] == str(python)
        assert item["problem"] == "it runs no start-up file of coati-ext"

    user = {"PYTHONPATH": both, "PYTHONUSERBASE": str(tmp_path)}
    facts, gap = doctor(**user)  # pip install --user
    assert facts["startup_file"] == str(aside / "coati_ext.pth")
    assert (gap["what"], gap["here"]) == ("python -s, python -I and PYTHONNOUSERSITE", False)
    assert facts["verdict"].startswith("NOT PATCHED. coati-ext checks this coati")
    assert [item["problem"] for item in facts["launchers"]] == ["", ""]

    facts, gap = doctor("-s", **user)
    assert gap["here"]
    assert "is in the user site directory, which -s, -I" in gap["why"]

    paths = [upstream, str(aside), *[path for path in sys.path if "site-packages" in path]]
    facts, gap = doctor("-S", PYTHONPATH=os.pathsep.join(paths))
    assert (gap["what"], gap["here"]) == ("python -S", True)

    facts, gap = doctor(PYTHONPATH=os.pathsep.join([upstream, str(ROOT)]))
    assert facts["startup_file"] is None
    assert gap["here"]


@pytest.mark.parametrize(
    ("version", "name"), [((3, 8), "coati_ext.pth"), ((3, 15), "coati_ext.start")], ids=str
)
def test_the_start_up_file_is_the_one_that_this_python_runs(monkeypatch, tmp_path, version, name):
    for file in installation.STARTUP_FILES:
        (tmp_path / file).write_text("")
    monkeypatch.setattr(installation, "site_directories", lambda: [tmp_path / "absent", tmp_path])
    with monkeypatch.context() as context:
        context.setattr(sys, "version_info", version)
        found = installation.startup_file()
    assert found == tmp_path / name
    assert "arms every process of a job" in installation.startup_reason(found)
    assert "3.15" in installation.startup_reason(found)


EXEC = "#!/bin/sh\n'''exec' '{python}' \"$0\" \"$@\"\n' '''\nimport x\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("#!{python}\nimport x\n", True),
        ("#!{python} -I\n", True),
        ("#!/usr/bin/env python-of-tests\n", False),
        ("#!/usr/bin/env -S {python} -u\n", True),
        (EXEC, True),
        ('#!/bin/sh\nexec {python} "$@"\n', False),
        ("\x7fELF\xff", False),
        ("", False),
    ],
)
def test_the_python_of_a_command_is_read_from_its_first_line(tmp_path, text, told):
    python = tmp_path / "python3.11"
    python.symlink_to(sys.executable)
    command = tmp_path / "launcher"
    command.write_text(text.format(python=python), encoding="latin-1")
    command.chmod(0o755)
    assert installation.interpreter_of(str(command)) == (str(python) if told else None)
    assert installation.interpreter_of(str(python)) == str(python)
    assert installation.interpreter_of("no-such-launcher") is None


def test_what_is_wrong_with_a_python_is_told(tmp_path):
    assert not installation.probe(sys.executable, ["-S"]).armed
    assert installation.Interpreter(True, "1.0").problem("1.0") == ""
    told = installation.Interpreter(True, "1.0").problem("2.0")
    assert told == "it has coati-ext 1.0, and this is 2.0"
    told = installation.Interpreter(False, "1.0").problem("1.0")
    assert told == "it runs no start-up file of coati-ext"
    told = installation.Interpreter(False, None).problem("1.0")
    assert told == "coati-ext is not installed for it"
    (tmp_path / "python").write_text("#!/bin/sh\necho no room >&2; exit 3\n")
    (tmp_path / "python").chmod(0o755)
    told = installation.probe(str(tmp_path / "python")).problem("1.0")
    assert told == "it does not start: no room"
    assert "FileNotFoundError" in installation.probe(str(tmp_path / "absent")).problem("1.0")
