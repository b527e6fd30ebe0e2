"""``coati-ext plot``: what it writes, says and refuses."""

from __future__ import annotations

import json

import pytest

from coati_ext.cli import main, plot

pytest.importorskip("matplotlib")
pytest.importorskip("tensorboard")
pytestmark = pytest.mark.once("the interpreter makes no difference to the command")


@pytest.fixture
def log(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    def write(run, **curves):
        writer = SummaryWriter(str(tmp_path / run))
        for name, values in curves.items():
            for step, value in enumerate(values):
                writer.add_scalar(name.replace("__", "/"), value, step)
        writer.close()

    return write


def test_two_runs_side_by_side(log, tmp_path, capsys):
    log("one", rollout__kl=[0, 2], rollout__score_mean=[1, 3], rollout__score_spread=[0.5, 0.5])
    log("other", rollout__kl=[0, 4], train__loss=[9])
    out = tmp_path / "new" / "curves.png"
    assert main(["plot", "one", "other", "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "file": str(out),
        "runs": ["one", "other"],
        "last": {
            "rollout/score_mean": {"one": 3.0},
            "rollout/score_spread": {"one": 0.5},
            "rollout/kl": {"one": 2.0, "other": 4.0},
        },
    }
    assert out.read_bytes().startswith(b"\x89PNG")
    assert main(["plot", "one", "other", "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["last", "value", "one", "other"]
    assert ["rollout/kl", "2", "4"] in [line.split() for line in lines]
    assert lines[-1] == f"Drawn in {out}"


def test_runs_of_the_flag_off_are_told(log, tmp_path, capsys):
    log("off", train__loss=[1])
    assert main(["plot", "off"]) == 2
    told = capsys.readouterr().err
    assert "no curve of coati-ext in off, only train/loss" in told
    assert "COATI_EXT=1" in told
    assert not (tmp_path / "curves.png").exists()


@pytest.mark.parametrize("package", ["tensorboard", "matplotlib"])
def test_what_is_missing_is_named(monkeypatch, capsys, package):
    monkeypatch.setattr(plot, "version_of", lambda name: None if name == package else "1")
    assert main(["plot", "."]) == 2
    assert f"plot needs {package}: pip install 'coati-ext[plot]'" in capsys.readouterr().err
