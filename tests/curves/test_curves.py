"""Event files as curves and a picture, and what is told of curves."""

from __future__ import annotations

import re
import warnings

import pytest

from coati_ext.curves.catalogue import PANELS, STAGES
from coati_ext.curves.draw import draw, panels_of
from coati_ext.curves.events import read, runs_in
from coati_ext.errors import InputError
from helpers import ROOT

pytest.importorskip("matplotlib")
pytest.importorskip("tensorboard")
pytestmark = pytest.mark.once("pure Python over TensorBoard's and matplotlib's own interfaces")


def write(folder, curves):
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))
    for name, points in curves.items():
        for step, value in points:
            writer.add_scalar(name, value, step)
    writer.close()
    return folder


@pytest.fixture
def logs(tmp_path):
    write(tmp_path / "a" / "ppo" / "1", {"policy/ratio_mean": [(1, 1.0), (2, 1.5)]})
    write(tmp_path / "b" / "ppo" / "1", {"policy/ratio_mean": [(1, 1.0)], "train/loss": [(1, 3)]})
    return tmp_path


def silent(_):
    pass


def test_runs_are_found_at_any_depth_and_named_apart(logs):
    assert list(runs_in([logs])) == ["a", "b"]
    assert list(runs_in([logs / "a", logs / "b"])) == ["a", "b"]
    write(logs / "b" / "rm" / "1", {})
    assert list(runs_in([logs])) == ["a/ppo", "b/ppo", "b/rm"]
    assert list(runs_in([logs / "a", logs / "a"])) == ["1"]
    (file,) = (logs / "b" / "ppo" / "1").iterdir()
    assert list(runs_in([file])) == ["1"]


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere does not exist"):
        runs_in([tmp_path / "nowhere"])
    with pytest.raises(InputError, match="holds no event file"):
        runs_in([tmp_path])


def test_curves_are_read_as_they_were_written_last(logs):
    write(logs / "a" / "ppo" / "1", {"policy/ratio_mean": [(2, 0.5), (3, 0.25)]})  # a restart
    told = []
    found = read(runs_in([logs / "a"]), told.append)
    assert found == {"1": {"policy/ratio_mean": [(1, 1.0), (2, 0.5), (3, 0.25)]}}
    assert told[-1] == "reading 1"


def test_more_points_than_tensorboard_keeps_for_its_own_page(tmp_path):
    points = [(step, float(step)) for step in range(12000)]
    write(tmp_path, {"policy/step_kl": points})
    assert read(runs_in([tmp_path]), silent)[tmp_path.name]["policy/step_kl"] == points


def all_curves(value):
    return {
        f"{stage}/{curve}": [(1, value), (2, value / 2)]
        for stage in STAGES
        for panel in PANELS
        for curve in panel.curves
    }


@pytest.mark.parametrize("count", [1, 9])
def test_a_picture_of_everything(tmp_path, count):
    runs = {f"run {number}": all_curves(number / 9) for number in range(count)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of what does not fit
        draw(runs, tmp_path / "all.png")
    assert (tmp_path / "all.png").read_bytes().startswith(b"\x89PNG")


def test_no_two_of_twenty_runs_look_alike():
    from coati_ext.curves.draw import _style

    assert len({tuple(_style(place).items()) for place in range(20)}) == 20
    assert len({_style(place)["color"] for place in range(7)}) == 7


def test_panels_are_those_that_a_run_has():
    ((stage, panels),) = panels_of({"a": {"policy/step_kl": [(1, 0.0)], "train/loss": [(1, 0.0)]}})
    assert (stage, [panel.curve for panel in panels]) == ("policy", ["step_kl"])


def test_every_curve_is_in_the_catalogue_and_explained():
    from coati_ext.patches.metrics.curves import _KINDS, curves_of

    sizes = {"calibration": 30, "pooled": 4, "used": 3}
    written = {curve for kind in _KINDS for curve in curves_of(kind, [0.0] * sizes.get(kind, 6))}
    assert {curve for panel in PANELS for curve in panel.curves} == written
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert [curve for curve in written if not re.search(rf"`(?:\w+/)?{curve}`", page)] == []
