"""What runs from the working directory, and from where else: nothing in it shadows a module."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from helpers import ROOT
from helpers.interpreters import Python

# What the command line imports, of ours and of Python's own.
SHADOWS = (
    *("tomli", "tomllib", "rich", "pluggy", "wrapt", "packaging", "torch", "typing_extensions"),
    *("argparse", "ast", "difflib", "json", "tempfile", "inspect", "hashlib", "base64", "shlex"),
    *("textwrap", "tokenize", "importlib_metadata", "coati_ext_plugin", "pygments", "markdown_it"),
)
LOOKS = (
    *(["doctor"], ["list"], ["plan"], ["explain", "rollout"], ["explain", "pool_reward"]),
    *(["diff", "eos_pooling"], ["config"], ["plugins"]),
)


@pytest.fixture
def hostile(tmp_path):
    """A working directory full of modules that leave a trace when they run."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    for name in SHADOWS:
        trace = f"open({str(tmp_path / 'ran')!r}, 'a').write('{name}\\n')\n"
        (folder / f"{name}.py").write_text(trace)
    (folder / "coati-ext.toml").write_text("rank_check = 0\n")
    return folder


def console_script(tmp_path):
    """As pip installs it, in a folder that Python puts first on its path."""
    file = tmp_path / "bin" / "coati-ext"
    file.parent.mkdir()
    file.write_text("import sys\nfrom coati_ext.cli import main\nsys.exit(main())\n")
    return str(file)


def ran(tmp_path):
    trace = tmp_path / "ran"
    return trace.read_text().split() if trace.exists() else []


@pytest.mark.attack
@pytest.mark.enough("G4", why="the command line imports the same for each")
@pytest.mark.parametrize("way", ["script", "module"])
def test_nothing_in_the_folder_shadows_a_module(upstream, tmp_path, hostile, way, tally, full):
    python = Python(upstream.folder, hostile)
    start = ["-m", "coati_ext"] if way == "module" else [console_script(tmp_path)]
    commands = [*LOOKS, ["run", "--", "true"]] if full else [["doctor"], ["diff", "eos_pooling"]]
    for command in commands:
        done = python(*start, *command, check=False)
        assert "Traceback" not in done.stderr, done.stderr
    tally(
        "modules of the folder, of each command", len(commands) * len(SHADOWS), len(ran(tmp_path))
    )
    assert ran(tmp_path) == []


@pytest.mark.enough("G4", why="the processes are the same for each")
@pytest.mark.slow
def test_nor_where_doctor_measures(upstream, tmp_path, hostile, monkeypatch):
    from coati_ext.cli.child import run_module

    monkeypatch.chdir(hostile)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(sys, "path", [str(ROOT), str(upstream.folder), *sys.path])
    (hostile / "measured.py").write_text("import coati, json\nprint(json.dumps(coati.__file__))\n")
    shutil.copytree(str(upstream.package), str(hostile / "coati"))
    found = run_module("measured", flag="0")
    assert Path(found).parent == hostile / "coati"  # as a script beside it would find
    assert ran(tmp_path) == []


@pytest.mark.enough("G1", "G4", why="one is in the folder, the other elsewhere on the path")
def test_the_coati_of_the_folder_comes_first_as_for_a_script_in_it(upstream, tmp_path):
    from coati_ext.testing import standin

    other = "G4" if upstream.generation != "G4" else "G1"
    folder = tmp_path / "mine"
    shutil.copytree(str(standin(other) / "coati"), str(folder / "coati"))
    (folder / "train.py").write_text("import coati\nprint(coati.__file__)\n")
    python = Python(upstream.folder, folder)
    seen = Path(python("train.py").stdout.strip()).parent
    plan = json.loads(python.cli("plan", "--json").stdout)
    assert Path(plan["coati"]).resolve() == seen.resolve() == (folder / "coati").resolve()
    assert plan["generation"] == other


@pytest.mark.enough("G4", why="Python's own rule")
def test_a_folder_called_coati_that_is_no_package_hides_none(upstream, tmp_path):
    (tmp_path / "coati").mkdir()
    plan = json.loads(Python(upstream.folder, tmp_path).cli("plan", "--json").stdout)
    assert Path(plan["coati"]) == upstream.package


def test_a_module_of_the_folder_can_be_a_plugin(newest, tmp_path, capsys, monkeypatch):
    from coati_ext.cli import main

    monkeypatch.delitem(sys.modules, "my_hooks_here", raising=False)
    before = list(sys.path), list(sys.meta_path)
    (tmp_path / "coati-ext.toml").write_text('plugins = ["my_hooks_here"]\n')
    (tmp_path / "my_hooks_here.py").write_text(
        "from coati_ext import hookimpl\n@hookimpl\ndef patch_applied(row):\n    pass\n"
    )
    assert main(["plugins"]) == 0
    assert "my_hooks_here" in capsys.readouterr().out
    assert (sys.path, sys.meta_path) == before


def test_the_command_of_run_gets_no_path_of_ours(newest, monkeypatch):
    from coati_ext.cli import main, run

    seen = {}
    monkeypatch.setattr(run, "_require_armed", lambda command: None)
    monkeypatch.setattr(run, "_become", lambda command: seen.update(os.environ))
    with mock.patch.dict(os.environ):
        before = dict(os.environ)
        with pytest.raises(TypeError):  # as nothing comes back from becoming another process
            main(["run", "--", "true"])
    changed = {name for name in {*before, *seen} if before.get(name) != seen.get(name)}
    assert changed == {"COATI_EXT", "COATI_EXT_FROZEN", "RAY_RUNTIME_ENV_HOOK"}


# --- looking without running --------------------------------------------------------------------


@pytest.fixture
def unsafe(tmp_path, monkeypatch):
    """A folder whose settings name plugins, with options, a patch and choices of theirs."""
    (tmp_path / "unsafe.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write('file\\n')\n")
    (tmp_path / "unsafe_module.py").write_text((tmp_path / "unsafe.py").read_text())
    (tmp_path / "coati-ext.toml").write_text(
        'plugins = ["./unsafe.py", "unsafe_module"]\n'
        "[unsafe]\nenabled = true\nfactor = 3\n"
        '[use]\nshape_reward = "unsafe"\n'
        '[eos_pooling]\npooling = "unsafe"\n'
    )
    monkeypatch.setenv("COATI_EXT", "rollout,eos_pooling,left_padding,unsafe")
    info = tmp_path / "unsafe-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: unsafe\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[coati_ext]\ninstalled = unsafe_module\n")
    return tmp_path


@pytest.mark.parametrize("command", LOOKS, ids=" ".join)
def test_no_plugins_looks_without_running(newest, unsafe, capsys, command):
    from coati_ext.cli import main

    assert main([*command, "--no-plugins"]) == 0
    capsys.readouterr()
    assert main([*command, "--no-plugins", "--json"]) == 0
    assert isinstance(json.loads(capsys.readouterr().out), dict)
    assert ran(unsafe) == []


def facts(capsys, *command):
    from coati_ext.cli import main

    status = main([*command, "--no-plugins", "--json"])
    return status, json.loads(capsys.readouterr().out)


def test_what_is_not_loaded_is_shown_and_not_checked(newest, unsafe, capsys):
    _, plugins = facts(capsys, "plugins")
    states = {item["name"]: item["state"] for item in plugins["plugins"]}
    names = ("unsafe", "unsafe_module", "installed")
    assert {states[name] for name in names} == {"not loaded"}
    assert states["rollout"] == "loaded"
    _, plan = facts(capsys, "plan")
    assert set(plan["not_loaded"]) == set(names)
    assert plan["digest"] is None
    assert plan["choices"]["pool_reward"] == "unsafe (not loaded)"
    assert plan["choices"]["shape_reward"] == "unsafe (not loaded)"
    assert plan["choices"]["mark_actions"] == "up_to_the_end"
    _, config = facts(capsys, "config")
    rows = {item["name"]: item for item in config["settings"]}
    for name, value in (("unsafe.factor", 3), ("eos_pooling.pooling", "unsafe")):
        assert rows[name]["value"] == value
        assert rows[name]["origin"].endswith("(not checked: plugins not loaded)")
    assert rows["rollout.enabled"]["value"] is True
    assert "not checked" not in rows["rollout.enabled"]["origin"]


def test_what_cannot_be_a_plugins_is_checked_all_the_same(newest, unsafe, capsys, monkeypatch):
    from coati_ext.cli import main

    monkeypatch.setenv("COATI_EXT_SET", "rollout.lamb=0.9,rollout.lam=9")
    assert main(["plan", "--no-plugins"]) == 2
    told = capsys.readouterr().err
    assert "rollout.lamb: no such option; did you mean lam?" in told
    assert "rollout.lam = '9'" in told
    assert "2 problems" in told
    monkeypatch.delenv("COATI_EXT_SET")
    assert main(["explain", "unsafe", "--no-plugins"]) == 2
    assert "not checked: plugins not loaded" in capsys.readouterr().err


def test_live_needs_the_plugins(newest, unsafe, capsys):
    from coati_ext.cli import main

    assert main(["doctor", "--live", "--no-plugins"]) == 2
    assert "leave out --no-plugins or --live" in capsys.readouterr().err
    assert ran(unsafe) == []


def test_without_the_switch_the_plugins_of_the_settings_run(newest, unsafe, capsys):
    from coati_ext.cli import main

    assert main(["plugins"]) == 2
    assert "file" in ran(unsafe)


def test_a_folder_that_was_deleted_is_told(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    done = subprocess.run(
        ["sh", "-c", f'rmdir "{gone}" && exec "{sys.executable}" -m coati_ext list'],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=str(gone),
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "coati-ext: the working directory was deleted: change to a folder that exists"
    )
    assert "Traceback" not in done.stderr


def test_a_configuration_that_links_to_itself_is_told(newest, tmp_path, capsys):
    from coati_ext.cli import main

    loop = tmp_path / "loop.toml"
    loop.symlink_to(loop)
    assert main(["run", "--config", str(loop), "--", sys.executable, "-V"]) == 2
    assert f"cannot read {loop}" in capsys.readouterr().err
