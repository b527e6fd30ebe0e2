"""What a patch relies on: known code says nothing, an edit is told, a grave one is refused."""

from __future__ import annotations

import json
import re
import shutil
import warnings

import pytest

import coati_ext
from coati_ext.cli import main
from coati_ext.errors import RefusedError
from coati_ext.patching.patch import GENERATIONS, Patch, Reliance, Site
from coati_ext.patching.reliances import read_reliances
from coati_ext.patching.source import Coati, function_in
from coati_ext.plan import make_plan
from helpers.upstreams import importable

pytestmark = pytest.mark.once(why="source is read, which knows neither torch nor transformers")
SAMPLER = "coati.models.generation:_is_sequence_finished"
TRAIN = "coati.trainer.rm:RewardModelTrainer._train"
ITEM = "coati.dataset.reward_dataset:HhRlhfDataset.__getitem__"


@pytest.fixture
def edited(upstream, tmp_path):
    """A copy of the coati under test, with a function that edits one of its functions."""
    copy = tmp_path / "edited"
    shutil.copytree(str(upstream.package), str(copy / "coati"))

    def edit(target, old, new):
        module, name = target.split(":")
        file = copy.joinpath(*module.split(".")).with_suffix(".py")
        function = function_in(file, name).text
        other, count = re.subn(old, new, function, count=1)
        assert count == 1
        file.write_text(file.read_text().replace(function, other))
        return file

    with importable(copy):
        yield edit


def state(plan, target):
    (found,) = [item for item in plan.relies if item.reliance.target == target]
    return found.state


def test_nothing_that_patches_rely_on_is_changed_in_a_release(upstream):
    plan = make_plan()
    assert {item.state for item in plan.relies} == {"fits"}
    assert {item.patch for item in plan.relies} == {
        *("eos_pooling", "left_padding", "rollout", "stable_losses"),
        *(("distributed",) if (upstream.package / "distributed").is_dir() else ()),
    }
    assert len(plan.relies) > 20
    assert plan.changed == ()


def test_an_edit_is_told_by_the_report_a_warning_and_the_commands(edited, capsys):
    file = edited(SAMPLER, "    if ", "    print('mine')\n    if ")
    with pytest.warns(UserWarning, match="`print") as said:
        report = coati_ext.enable()
    assert len(said) == 1
    coati_ext.disable()
    # Models of other tests may be alive, of which token_saving tells how they were computed.
    (note,) = (it for it in report.notes if not it.startswith("token_saving computes"))
    assert str(said[0].message) == note
    assert note.startswith(f"rollout: {file}, line ")
    assert "_is_sequence_finished differs from upstream's" in note
    assert "`print('mine')` (fingerprint " in note
    assert note.endswith("relies on it: it samples the answers")
    on = [row for row in report.patches if row.name != "reward_scaling"]  # off by default
    assert {row.state for row in on} <= {"applied", "pending", "already upstream"}
    assert main(["plan", "--json"]) == 0
    (found,) = [
        item for item in json.loads(capsys.readouterr().out)["relies"] if item["state"] != "fits"
    ]
    assert (found["patch"], found["state"], found["target"]) == ("rollout", "changed", SAMPLER)
    for command in ("plan", "doctor"):
        main([command])
        assert f"warning: {note}" in capsys.readouterr().out


def test_a_cosmetic_edit_is_not_told(edited):
    edited(SAMPLER, "    if ", "    # mine\n\n    if ")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_plan().check()


@pytest.mark.parametrize("policy", ["strict", "structural"])
def test_an_exchange_of_chosen_and_rejected_is_refused_unless_structural(edited, upstream, policy):
    if upstream.generation in ("G1", "G2"):
        target, old, new = ITEM, r"self\.(chosen|_pair)", "self.reject"
    else:
        target, old, new = TRAIN, r"loss_fn\((\w+), (\w+)\)", r"loss_fn(\2, \1)"
    edited(target, old, new)
    plan = make_plan({"policy": policy})
    assert state(plan, target) == {"strict": "refused", "structural": "changed"}[policy]
    if policy == "structural":
        with pytest.warns(UserWarning, match=r"relies on it"):
            plan.check()
        return
    with pytest.raises(RefusedError, match="refuses to patch") as refused:
        plan.check()
    told = str(refused.value)
    assert 'set policy = "structural"' in told
    assert "coati-ext diff" not in told  # which has nothing to show
    assert main(["plan"]) == 1
    rows = [row for row in coati_ext.status().patches if row.target == target]
    assert {row.state for row in rows} - {"off"} == {"refused"}  # a wrap of it is off, too


def test_doctor_says_that_it_does_not_fit(edited, capsys):
    edited(TRAIN, r"self\.model\.train\(\)", "self.model.eval()")
    assert main(["doctor", "--json"]) == 1
    assert "does not fit" in json.loads(capsys.readouterr().out)["verdict"]


def test_a_patch_that_is_off_relies_on_nothing(edited):
    edited(SAMPLER, "    if ", "    print('mine')\n    if ")
    plan = make_plan({"rollout": {"enabled": False}})
    assert "rollout" not in {item.patch for item in plan.relies}
    assert plan.changed == ()


def test_ranks_with_other_code_around_the_patches_have_other_digests(edited):
    before = make_plan().digest
    edited(SAMPLER, "    if ", "    # mine\n    if ")
    assert make_plan().digest == before
    edited(SAMPLER, "    if ", "    print('mine')\n    if ")
    assert make_plan().digest != before


@pytest.fixture
def small(tmp_path):
    """A coati of one module."""
    (tmp_path / "coati").mkdir()
    (tmp_path / "coati" / "small.py").write_text("def f(x):\n    return x\n")
    (tmp_path / "coati" / "broken.py").write_text("def f(x:\n    return x\n")
    return Coati(tmp_path / "coati", "G1")


def readings(coati, target="coati.small:f", policy="strict", generations=GENERATIONS, **given):
    site = Site("coati.small:g", "ours:g", GENERATIONS)
    relies = (Reliance(target, generations, "does it", **given),)
    return read_reliances([Patch("mine", "", (site,), relies=relies)], coati, policy)


def test_a_missing_function_is_told_unless_it_is_optional(small):
    (found,) = readings(small, "coati.small:h")
    assert found.state == "changed"
    assert found.fingerprint == ""
    assert found.reason.startswith("coati.small:h does not exist in the coati at ")
    assert readings(small, "coati.small:h", refuse=True)[0].state == "refused"
    assert readings(small, "coati.small:h", refuse=True, policy="structural")[0].state == "changed"
    assert readings(small, "coati.small:h", optional=True, refuse=True) == ()
    assert readings(small, "coati.none:h", optional=True) == ()
    assert readings(small, generations=("G2",)) == ()


def test_a_file_that_does_not_parse_is_told_even_if_optional(small):
    (found,) = readings(small, "coati.broken:f", optional=True)
    assert found.state == "changed"
    assert found.reason.startswith("cannot read ")


def test_code_that_was_never_recorded_is_told(small):
    (found,) = readings(small)
    assert "f was never recorded (fingerprint " in found.reason
    assert readings(small, fits={"v1": found.fingerprint})[0].reason == "fits v1"


def test_a_wrong_reliance_cannot_be_declared():
    with pytest.raises(ValueError, match=r"'coati.m' is not of the form"):
        Reliance("coati.m", ("G1",), "does it")
    with pytest.raises(ValueError, match="G5"):
        Reliance("coati.m:f", ("G5",), "does it")


def test_a_plugin_of_the_users_relies_on_what_it_says(upstream, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from coati_ext import Patch, Reliance, Site, hookimpl\n\n@hookimpl\n"
        "def register_patches(register):\n"
        "    everywhere = ('G1', 'G2', 'G3', 'G4')\n"
        "    site = Site('coati.models.loss:GPTLMLoss.forward', 'mine:f', everywhere,\n"
        "        mode='wrap', takes=('logits',))\n"
        "    loss = 'coati.models.loss:GPTLMLoss.__init__'\n"
        "    register(Patch('mine', '', (site,), default=True,\n"
        "        relies=(Reliance(loss, everywhere, why='makes it', fits={'a': '0'}),)))\n"
    )
    plan = make_plan({"plugins": ["./mine.py"]})
    assert state(plan, "coati.models.loss:GPTLMLoss.__init__") == "changed"
    (told,) = plan.changed
    assert told.startswith("mine: ")
    assert "differs from upstream's a in" in told
