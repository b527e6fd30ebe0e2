"""``coati-ext demo`` end to end on a few pairs, and how the command shows what its processes do."""

from __future__ import annotations

import io
import json
import sys

import pytest
from rich.console import Console

from coati_ext.cli import child
from coati_ext.cli.child import Run, side_by_side
from coati_ext.errors import ScriptError

SMALL = ["--pairs", "64", "--episodes", "1", "--seeds", "1"]


@pytest.mark.slow
@pytest.mark.once(why="each step and loss is compared on every stack; this adds them up")
@pytest.mark.enough("G1", "G4", why="of the two kinds of trainers one each")
def test_the_demo_trains_with_the_flag_off_and_on(upstream, warm_children, capsys, tmp_path):
    from coati_ext.cli import main

    out = tmp_path / "pictures"
    status = main(["demo", *SMALL, "--family", "llama", "--out", str(out), "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert (status, facts["generation"]) == (0, upstream.generation)
    off, on = facts["figures"]["off"], facts["figures"]["on"]
    assert off["moved"] > 0.01  # of a LLaMA by pads inside a row, or by G1's mean
    assert on["moved"] <= 1e-5
    assert on["differs"] <= 1e-5
    assert on["swapped"] == on["clipped"] == 0
    assert on["value_moved"] <= 1e-5
    assert off["start"] == on["start"]
    for run in facts["runs"].values():
        assert [len(it["words"]) for it in run["policy"]] == [2]
    pytest.importorskip("matplotlib")
    assert sorted(file.name for file in out.iterdir()) == ["ppo.png", "rewards.png"]


@pytest.mark.slow
def test_without_coati_a_stand_in_is_used_and_said(bare_python):
    view = bare_python.cli("demo", *SMALL).stdout
    assert "No coati of yours, but coati-ext's own stand-in for one" in view
    assert "Padding alone moves a reward by up to" in view
    commands = view.splitlines()[-3:]
    assert [line.split()[0] for line in commands] == ["coati-ext", "coati-ext", "COATI_EXT=1"]
    done = bare_python.cli("demo", "--family", "gtp2", check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("coati-ext: coati_ext.cli.demo_script failed with COATI_EXT=0")
    assert "unknown model family 'gtp2'" in done.stderr


def test_children_run_at_once_and_tell_how_far_they_are(monkeypatch, tmp_path):
    """Each waits for the other's file, so that one after the other would not end."""
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=100)
    monkeypatch.setattr(child, "Console", lambda stderr: terminal)
    (tmp_path / "waiting.py").write_text(
        "import json, sys, time\n"
        "from pathlib import Path\n"
        "from coati_ext.cli.child import tell\n"
        "mine, other = map(Path, sys.argv[1:])\n"
        "mine.touch()\n"
        "tell(3, 7, 'something slow')\n"
        "end = time.monotonic() + 60\n"
        "while not other.exists() and time.monotonic() < end:\n"
        "    time.sleep(0.05)\n"
        "time.sleep(1)\n"
        "print(json.dumps([other.exists(), str(Path.cwd())]))\n"
    )
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    files = [str(tmp_path / name) for name in ("first", "second")]
    runs = [Run("one", "0", (*files,)), Run("two", "0", (*files[::-1],))]
    (first, here), (second, there) = side_by_side("waiting", runs, apart=True)
    assert first
    assert second
    assert here != there
    assert "3/7" in screen.getvalue()
    assert "something slow" in screen.getvalue()


def test_a_child_that_fails_is_named(capsys):
    with pytest.raises(ScriptError, match=r"no_such_module failed with COATI_EXT=0: .*No module"):
        side_by_side("no_such_module", [Run("one", "0", ())])
    assert capsys.readouterr().err == ""  # not a terminal: no bars


def test_settings_are_those_of_the_folder_that_one_is_in(monkeypatch, tmp_path):
    """A child that works elsewhere finds the plugin, the file of settings and the log's folder."""
    (tmp_path / "asked.py").write_text(
        "import json\n"
        "from coati_ext.plan import make_plan\n"
        "plan = make_plan()\n"
        "told = [plan.settings.sections['metrics']['folder'].value, plan.settings.policy.value]\n"
        "print(json.dumps([*told, [name for name, _, _ in plan.layers.plugins]]))\n"
    )
    (tmp_path / "mine.py").write_text("")
    (tmp_path / "coati-ext.toml").write_text('policy = "structural"\n')
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COATI_EXT_SET", "plugins=./mine.py,metrics.folder=./logs")
    [found] = side_by_side("asked", [Run("one", "1", ())], apart=True)
    assert found == [str(tmp_path / "logs"), "structural", [str(tmp_path / "mine.py")]]


def test_the_whole_message_of_a_child_is_told(monkeypatch, tmp_path):
    (tmp_path / "failing.py").write_text("raise ValueError('first line\\nsecond line')\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    with pytest.raises(ScriptError, match=r"COATI_EXT=0: ValueError: first line\nsecond line$"):
        side_by_side("failing", [Run("one", "0", ())])
