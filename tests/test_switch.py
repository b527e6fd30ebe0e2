"""Switching on and off: every order, exact undo, idempotence, and nothing half-patched."""

from __future__ import annotations

import importlib
import itertools
import re
import shutil
import signal
import sys
import textwrap
from pathlib import Path

import pytest

import coati_ext
from coati_ext import switch
from coati_ext.errors import AlreadyEnabledError, DisturbedError, RefusedError
from coati_ext.launch import imports, ray_runtime_env, watch
from coati_ext.plan import make_plan
from helpers.upstreams import forget_coati

MODULES = ("coati.models", "coati.dataset", "coati.trainer")
PATCHES = ("eos_pooling", "left_padding", "provenance", "rollout", "stable_losses")


def import_all():
    for name in MODULES:
        importlib.import_module(name)


def attributes():
    """Every attribute of every coati module and class, by identity."""
    found = {}
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "coati":
            for key, value in list(vars(module).items()):
                found[name, key] = id(value)
                if isinstance(value, type) and value.__module__.startswith("coati"):
                    found.update({(name, key, k): id(v) for k, v in vars(value).items()})
    return found


def states(report):
    """The state of each target in coati; what needs ColossalAI or Ray may wait for its import."""
    waiting = ("colossalai.", "coati.distributed.")
    rows = [row for row in report.patches if row.target and not row.target.startswith(waiting)]
    return {row.target: row.state for row in rows}


def slot(target):
    module, qualname = target.split(":")
    *owners, name = qualname.split(".")
    owner = importlib.import_module(module)
    for part in owners:
        owner = vars(owner)[part]
    return vars(owner).get(name, getattr(owner, name))  # inherited where it was not extended


def test_enable_after_import_patches_at_once(upstream):
    import_all()
    report = coati_ext.enable()
    assert report.generation == upstream.generation
    assert set(states(report).values()) <= {"applied", "already upstream"}


def test_enable_before_import_patches_as_modules_come(upstream):
    report = coati_ext.enable()
    assert set(states(report).values()) <= {"pending", "already upstream"}
    import_all()
    assert set(states(coati_ext.status()).values()) <= {"applied", "already upstream"}
    assert coati_ext.status().digest == report.digest


@pytest.mark.parametrize("late", [False, True], ids=["before import", "after import"])
def test_disable_gives_back_every_attribute_by_identity(upstream, late):
    import_all()
    before = attributes()
    if not late:
        for name in [name for name in sys.modules if name.split(".")[0] == "coati"]:
            del sys.modules[name]
        coati_ext.enable()
        import_all()
        patched = {
            target: slot(target)
            for target, s in states(coati_ext.status()).items()
            if s == "applied"
        }
        coati_ext.disable()
        for target, function in patched.items():
            assert slot(target) is not function
            assert not slot(target).__module__.startswith("coati_ext.")
        held = {id(function) for function in patched.values()}
        assert [place for place, value in attributes().items() if value in held] == []
    else:
        coati_ext.enable()
        assert attributes() != before
        coati_ext.disable()
        assert attributes() == before


@pytest.mark.once(why="it is about the engine, which knows neither torch nor transformers")
def test_any_subset_of_patches_is_undone(upstream):
    import_all()
    before = attributes()
    sizes = range(len(PATCHES))
    for chosen in itertools.chain(*(itertools.combinations(PATCHES, size) for size in sizes)):
        on = {name: {"enabled": name in chosen} for name in (*PATCHES, "distributed")}
        report = coati_ext.enable(on)
        assert {row.name for row in report.patches if row.target} == set(chosen)
        coati_ext.disable()
        assert attributes() == before, chosen


@pytest.mark.once(why="it is about the engine, which knows neither torch nor transformers")
def test_every_order_of_import_enable_and_disable(python):
    """Three checks after each step, in a process for each order."""
    script = textwrap.dedent(
        """
        import sys, importlib, coati_ext
        from coati_ext.plan import make_plan
        steps = [step for step in make_plan().steps
                 if step.state == "pending" and ".models" in step.site.module]
        extended = {step.site.mode for step in steps} >= {"replace", "extend"}
        def slot(step):
            owner = sys.modules[step.site.module]
            *owners, name = step.site.qualname.split(".")
            for part in owners:
                owner = vars(owner)[part]
            return vars(owner).get(name, getattr(owner, name))
        on = imported = False
        for action in sys.argv[1].split(","):
            if action == "import":
                import coati.models
                imported = True
            elif action == "enable":
                coati_ext.enable(); on = True
            else:
                coati_ext.disable(); on = False
            if imported:
                for step in steps:
                    function = slot(step)
                    ours = function.__module__.startswith("coati_ext.")
                    if step.site.mode != "replace":
                        ours = hasattr(function, "__wrapped__")
                    assert ours == on, (action, step.site.target, function)
                    assert not hasattr(getattr(function, "__wrapped__", None), "__wrapped__")
        assert imported and extended
        """
    )
    words = ["import", "enable", "enable", "disable", "disable"]
    orders = {
        order
        for n in (2, 3, 4)
        for order in itertools.permutations(words, n)
        if "import" in order and "enable" in order
    }
    # One generation tells about the engine.
    if python.folder.parts[-1] not in ("g4", "G4") and len(orders) > 8:
        orders = set(sorted(orders)[::6])
    for order in sorted(orders):
        python.warm("-c", script, ",".join(order))


def test_enabling_twice_is_enabling_once(upstream):
    import_all()
    report = coati_ext.enable()
    patched = attributes()
    assert coati_ext.enable() == report
    assert attributes() == patched


def test_another_plan_is_an_error_that_shows_the_difference(upstream):
    coati_ext.enable()
    with pytest.raises(AlreadyEnabledError) as error:
        coati_ext.enable(
            {"eos_pooling": {"pooling": "masked_mean"}, "left_padding": {"enabled": False}}
        )
    assert "eos_pooling.pooling: eos in force, masked_mean asked for" in str(error.value)
    assert "left_padding.enabled: True in force, False asked for" in str(error.value)
    coati_ext.disable()
    coati_ext.enable({"eos_pooling": {"pooling": "masked_mean"}})


def test_applied_is_on_for_a_block(upstream):
    import_all()
    before = attributes()
    with coati_ext.applied({"left_padding": {"enabled": False}}) as report:
        assert "applied" in states(report).values()
        with coati_ext.applied({"left_padding": {"enabled": False}}):
            pass
        assert attributes() != before  # the inner block did not switch it off
    assert attributes() == before


def test_applied_undoes_after_an_error(upstream):
    import_all()
    before = attributes()
    with pytest.raises(KeyError), coati_ext.applied():
        raise KeyError
    assert attributes() == before


def test_a_foreign_patch_is_refused_by_name_and_nothing_is_patched(upstream, monkeypatch):
    import_all()
    from coati.models import LogExpLoss

    def somebody_elses(self, chosen_reward, reject_reward):
        return chosen_reward

    monkeypatch.setattr(LogExpLoss, "forward", somebody_elses)
    before = attributes()
    with pytest.raises(RefusedError) as error:
        coati_ext.enable()
    assert "coati.models.loss:LogExpLoss.forward was already changed" in str(error.value)
    assert "somebody_elses" in str(error.value)
    assert Path(__file__).name in str(error.value)
    assert attributes() == before
    assert all(row.state == "off" for row in coati_ext.status().patches)


def test_a_late_misfit_undoes_what_was_done_and_stops_the_import(upstream, monkeypatch):
    """A module that comes later turns out to be changed: the first one is given back."""
    coati_ext.enable()
    import coati.models

    reward_model = type(coati.models.RewardModel)  # the class object exists and is patched
    assert reward_model is type
    patched = coati.models.RewardModel.forward
    assert patched.__module__ == "coati_ext.patches.eos_pooling.reward_model"

    # Somebody registers, before us, a hook that changes the data path while it is imported.
    import wrapt

    home = (
        "coati.dataset.reward_dataset"
        if upstream.generation in ("G1", "G2")
        else "coati.dataset.loader"
    )
    name = (
        "RmStaticDataset"
        if upstream.generation in ("G1", "G2")
        else "DataCollatorForPreferenceDataset"
    )
    method = "__init__" if name == "RmStaticDataset" else "__call__"
    coati_ext.disable()

    def foreign(module):
        setattr(getattr(module, name), method, lambda self, *args, **kwargs: None)

    for module in [module for module in sys.modules if module.split(".")[0] == "coati"]:
        del sys.modules[module]
    wrapt.register_post_import_hook(foreign, home)
    coati_ext.enable()
    import coati.models

    with pytest.raises(RefusedError, match="set COATI_EXT=0 to run without patches"):
        import coati.dataset
    assert coati.models.RewardModel.forward.__module__.startswith("coati.")
    with pytest.raises(RefusedError):  # and it stays refused
        coati_ext.enable()


def test_a_disturbed_slot_is_not_undone(upstream, monkeypatch):
    import_all()
    coati_ext.enable()
    from coati.models import LogExpLoss

    ours = vars(LogExpLoss)["forward"]
    patched = attributes()
    LogExpLoss.forward = lambda self, a, b: a
    with pytest.raises(
        DisturbedError, match=r"LogExpLoss.forward \(now .*lambda.*nothing was undone"
    ):
        coati_ext.disable()
    LogExpLoss.forward = ours
    assert attributes() == patched
    coati_ext.disable()


def test_names_bound_early_inside_coati_are_rebound_and_listed(upstream, tmp_path, monkeypatch):
    """A plugin's patch of a function reaches `from coati.models.utils import masked_mean`."""
    import coati.models.loss as loss
    import coati.models.utils as utils

    from coati_ext.patching.source import find_coati

    function = find_coati().function("coati.models.utils", "masked_mean")
    Path("scale.py").write_text(
        textwrap.dedent(
            f"""
            from coati_ext import Patch, Site, hookimpl

            def doubled(original, *args, **kwargs):
                return original(*args, **kwargs)

            @hookimpl
            def register_patches(register):
                site = Site(
                    "coati.models.utils:masked_mean", "coati_ext_plugin_scale:doubled",
                    generations=("G1", "G2", "G3", "G4"), mode="wrap",
                    fits={{"here": "{function.fingerprint}"}},
                )
                register(Patch("scale", "doubles", (site,), default=True))
            """
        )
    )
    original = utils.masked_mean
    assert loss.masked_mean is original
    report = coati_ext.enable({"plugins": ["./scale.py"]})
    assert loss.masked_mean is utils.masked_mean is not original
    assert utils.masked_mean.__wrapped__ is original
    assert "rebound coati.models.loss:masked_mean" in report.notes
    coati_ext.disable()
    assert loss.masked_mean is utils.masked_mean is original


def test_a_subclass_that_overrides_forward_is_named(upstream):
    import_all()
    from coati.models import RewardModel

    class Mine(RewardModel):
        def forward(self, *args, **kwargs):
            return None

    report = coati_ext.enable()
    (note,) = [note for note in report.notes if "Mine" in note]
    assert "overrides forward" in note
    assert Path(__file__).name in note


def test_the_kill_switch_stops_enable(upstream, monkeypatch):
    monkeypatch.setenv("COATI_EXT", "0")
    import_all()
    before = attributes()
    report = coati_ext.enable()
    assert all(row.state == "off" for row in report.patches)
    assert attributes() == before


def test_the_kill_switch_needs_no_settings_that_are_right(upstream, monkeypatch):
    monkeypatch.setenv("COATI_EXT", "0")
    Path("coati-ext.toml").write_text("not toml")
    import_all()
    before = attributes()
    report = coati_ext.enable()
    assert not report.patches
    assert "COATI_EXT says off; without it: coati-ext.toml" in report.notes[0]
    assert attributes() == before
    assert ray_runtime_env({})["env_vars"] == {"COATI_EXT": "0"}


def test_the_kill_switch_does_not_hide_what_is_on(upstream, monkeypatch):
    report = coati_ext.enable()
    monkeypatch.setenv("COATI_EXT", "0")
    assert coati_ext.enable() == report


def test_a_patch_without_sites_is_in_force_by_what_it_serves(upstream):
    def row():
        (found,) = [it for it in coati_ext.status().patches if it.name == "token_saving"]
        return found.state, found.target, found.reason

    assert row() == ("off", "", "not enabled")
    with coati_ext.applied() as report:
        serves = "changes no upstream function; it serves last_hidden_states by auto"
        assert row() == ("applied", "", serves)
        assert "token_saving on coati generation" in report.headline
    with coati_ext.applied({"token_saving": {"enabled": False}}) as report:
        assert row()[0] == "off"
        assert "token_saving" not in report.headline


def test_status_and_reports_are_values(upstream):
    off = coati_ext.status()
    assert all(row.state == "off" for row in off.patches)
    report = coati_ext.enable()
    assert report == coati_ext.status()
    assert report.as_dict()["patches"][0]["name"] == report.patches[0].name
    assert "eos_pooling" in str(report)
    assert report.digest == make_plan().digest


@pytest.mark.enough("G2", why="it has no coati.distributed, as most have not")
def test_a_patch_for_another_coati_is_told_if_somebody_asked_for_it(upstream):
    if (upstream.folder / "coati" / "distributed").is_dir():
        pytest.skip("this coati has the package")
    assert "distributed" not in {row.name for row in coati_ext.status().patches}
    report = coati_ext.enable({"distributed": {"enabled": True}})
    (row,) = [row for row in report.patches if row.name == "distributed"]
    assert (row.state, row.reason) == ("off", "nothing to change in this coati")


def test_nothing_is_written_when_a_write_fails(upstream, monkeypatch):
    import_all()
    from coati_ext.patching import apply

    before = attributes()
    writes = []

    def failing(self):
        if len(writes) == 2:
            raise RuntimeError("disk on fire")
        writes.append(self)
        setattr(self.owner, self.name, self.new)

    monkeypatch.setattr(apply.Write, "do", failing)
    with pytest.raises(RuntimeError, match="disk on fire"):
        coati_ext.enable()
    assert len(writes) == 2
    assert attributes() == before


def test_observers_see_each_applied_target(upstream, tmp_path):
    Path("watch.py").write_text(
        "from coati_ext import hookimpl\nseen = []\n\n@hookimpl\ndef patch_applied(row):\n"
        "    seen.append((row.name, row.state))\n"
    )
    import_all()
    report = coati_ext.enable({"plugins": ["./watch.py"]})
    seen = sys.modules["coati_ext_plugin_watch"].seen
    assert len(seen) == [row.state for row in report.patches if row.target].count("applied")
    assert set(seen) <= {(name, "applied") for name in PATCHES}


def test_a_plugin_adds_to_the_report_and_cannot_break_it(upstream):
    Path("remark.py").write_text(
        "from coati_ext import hookimpl\n\n@hookimpl\ndef report_made(note):\n"
        "    note('it is so')\n    1 / 0\n"
    )
    coati_ext.enable({"plugins": ["./remark.py"]})
    # Models of other tests may be alive, of which token_saving tells how they were computed.
    notes = coati_ext.status().notes
    said, failed = (it for it in notes if not it.startswith("token_saving computes"))
    assert said == "it is so"
    assert re.match(r"report_made of plugin remark \(.*remark.py, line 3\) failed: ZeroD", failed)
    assert "note: it is so" in str(coati_ext.status())
    coati_ext.disable()
    assert coati_ext.status().notes == ()


# --- modules that are executed again, and slots that are overwritten --------------------------


def in_coati(report, state):
    return [row for row in report.patches if row.state == state and row.target[:5] == "coati"]


def test_a_module_that_is_reloaded_is_patched_again(upstream):
    import_all()
    before = coati_ext.enable()
    for name in ("coati.models.loss", "coati.models.utils"):
        importlib.reload(sys.modules[name])
    import coati.models.loss

    forward = coati.models.loss.LogExpLoss.forward
    assert forward.__module__.startswith("coati_ext.")
    report = coati_ext.status()
    assert report == before == coati_ext.enable()
    coati_ext.disable()
    assert coati.models.loss.LogExpLoss.forward.__module__ == "coati.models.loss"


def test_a_purged_coati_is_patched_when_it_is_imported_again(upstream):
    import_all()
    first = coati_ext.enable()
    old = sys.modules["coati.models.loss"].LogExpLoss
    forget_coati()
    assert in_coati(coati_ext.status(), "applied") == []
    import_all()
    assert sys.modules["coati.models.loss"].LogExpLoss is not old
    report = coati_ext.status()
    assert report.patches == first.patches
    coati_ext.disable()
    for loss in (old, sys.modules["coati.models.loss"].LogExpLoss):  # models of both may live
        assert loss.forward.__module__ == "coati.models.loss"


def test_a_module_that_was_executed_unseen_is_told_and_can_be_patched_again(upstream):
    import_all()
    coati_ext.enable()
    loss = sys.modules["coati.models.loss"]
    loss.__loader__.exec_module(loss)
    lost = in_coati(coati_ext.status(), "refused")
    assert {row.target.split(":")[0] for row in lost} == {"coati.models.loss"}
    assert all("executed again unseen by coati-ext" in row.reason for row in lost)
    assert not in_coati(coati_ext.enable(), "refused")


def test_a_reload_of_edited_source_is_stopped_and_undoes_all(upstream, tmp_path, monkeypatch):
    folder = tmp_path / "edited"
    shutil.copytree(str(upstream.package), str(folder / "coati"))
    forget_coati()
    monkeypatch.syspath_prepend(str(folder))
    import_all()
    coati_ext.enable()
    import coati.models.loss

    file = folder / "coati" / "models" / "loss.py"
    file.write_text("# edited\n" + file.read_text())
    with pytest.raises(RefusedError, match=r"coati\.models\.loss:") as caught:
        importlib.reload(coati.models.loss)
    assert caught.value.__suppress_context__  # told once, not once more as its own cause
    import coati.models

    assert coati.models.RewardModel.forward.__module__.startswith("coati.models")
    assert not in_coati(coati_ext.status(), "applied")
    with pytest.raises(RefusedError):
        coati_ext.enable()
    coati_ext.disable()
    assert coati_ext.enable().digest  # the plan reads what is there now


def test_a_reload_that_fails_half_way_undoes_all(upstream, monkeypatch):
    import_all()
    coati_ext.enable()
    import coati.models
    import coati.models.loss

    def broken(self, module):
        exec(self.get_code(module.__name__), vars(module))
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(type(coati.models.loss.__loader__), "exec_module", broken)
        with pytest.raises(KeyboardInterrupt):
            importlib.reload(coati.models.loss)
    assert coati.models.RewardModel.forward.__module__.startswith("coati.models")
    assert not in_coati(coati_ext.status(), "applied")
    assert in_coati(coati_ext.enable(), "applied")


@pytest.mark.parametrize("how", ["upstream's", "a user's"])
def test_a_slot_that_was_overwritten_is_not_applied(upstream, how):
    import_all()
    from coati.models import LogExpLoss

    theirs = vars(LogExpLoss)["forward"] if how == "upstream's" else lambda self, a, b: a
    coati_ext.enable()
    digest = switch._session.word()
    ours = vars(LogExpLoss)["forward"]
    LogExpLoss.forward = theirs
    (row,) = in_coati(coati_ext.status(), "refused")
    assert row.target == "coati.models.loss:LogExpLoss.forward"
    assert row.reason.startswith("overwritten: it is now ")
    assert switch._session.word() == f"{digest} without {row.target}"
    if how == "upstream's":
        assert not in_coati(coati_ext.enable(), "refused")  # patched again
        assert vars(LogExpLoss)["forward"] is ours
    else:
        with pytest.raises(RefusedError, match="was already changed by something else"):
            coati_ext.enable()
        with pytest.raises(DisturbedError):
            coati_ext.disable()
        assert in_coati(coati_ext.status(), "applied")
        LogExpLoss.forward = ours
    assert not in_coati(coati_ext.status(), "refused")
    assert switch._session.word() == digest


def test_a_patch_within_somebody_elses_wrapper_is_applied_and_noted(upstream):
    import wrapt

    import_all()
    from coati.models import LogExpLoss

    report = coati_ext.enable()
    ours = vars(LogExpLoss)["forward"]
    wrapt.wrap_function_wrapper(LogExpLoss, "forward", lambda wrapped, _, args, __: wrapped(*args))
    now = coati_ext.status()
    assert now.patches == report.patches
    (note,) = set(now.notes) - set(report.notes)
    assert note.startswith("coati.models.loss:LogExpLoss.forward is wrapped by a ")
    assert coati_ext.enable() == now
    LogExpLoss.forward = ours


# --- interrupts, and who is asked -------------------------------------------------------------


def test_a_failed_session_stops_every_later_import_until_disable(upstream, monkeypatch):
    coati_ext.enable()
    import coati.models

    def fail(steps, modules):
        raise OSError("no disk")

    with monkeypatch.context() as context:
        context.setattr(switch, "writes_for", fail)
        with pytest.raises(RefusedError, match="OSError: no disk"):
            import coati.dataset
    for name in ("coati.dataset", "coati.trainer", "coati.experience_maker"):
        with pytest.raises(RefusedError, match="OSError: no disk"):
            importlib.import_module(name)
    assert coati.models.RewardModel.forward.__module__.startswith("coati.models")
    rows = [row for row in coati_ext.status().patches if row.target]
    assert {row.state for row in rows} <= {"refused", "already upstream"}
    with pytest.raises(RefusedError, match="no disk"):
        coati_ext.enable()
    coati_ext.disable()
    import_all()


def test_an_interrupted_session_stops_imports_and_can_be_enabled_again(upstream, monkeypatch):
    coati_ext.enable()
    with monkeypatch.context() as context:
        context.setattr(switch, "write_all", lambda writes, ledger: signal.raise_signal(2))
        with pytest.raises(KeyboardInterrupt):
            import_all()
    with pytest.raises(RefusedError, match="patching was interrupted"):
        import_all()
    assert "applied" not in {row.state for row in coati_ext.status().patches}
    coati_ext.enable()
    import_all()
    assert not {"off", "refused", "pending"} & set(states(coati_ext.status()).values())


def test_a_plugin_may_import_coati_at_its_top(upstream, monkeypatch):
    """While the plan is made, under the flag or not: what it imports is patched with the rest."""
    Path("early.py").write_text(
        "import coati.models\nfrom coati_ext import hookimpl\n\n"
        "@hookimpl\ndef patch_applied(row):\n    import coati_ext\n    coati_ext.status()\n"
    )
    monkeypatch.setenv("COATI_EXT", "1")
    monkeypatch.setenv("COATI_EXT_SET", "plugins=./early.py")
    watch.activate()
    import coati.models

    assert coati.models.RewardModel.forward.__module__.startswith("coati_ext.")
    import_all()
    assert not {"off", "refused", "pending"} & set(states(coati_ext.status()).values())


def test_enabling_while_a_target_is_being_imported_is_refused(upstream, tmp_path, monkeypatch):
    folder = tmp_path / "edited"
    shutil.copytree(str(upstream.package), str(folder / "coati"))
    forget_coati()
    monkeypatch.syspath_prepend(str(folder))
    file = folder / "coati" / "models" / "loss.py"
    file.write_text(file.read_text() + "\nimport coati_ext\ncoati_ext.enable()\n")
    with pytest.raises(RefusedError, match="loss is being imported right now"):
        importlib.import_module("coati.models")
    assert all(row.state == "off" for row in coati_ext.status().patches)


def test_imports_are_as_they_were_after_disable_and_after_a_block(upstream, monkeypatch):
    importlib_ = sys.modules["_frozen_importlib"]
    plain = importlib_._find_spec
    coati_ext.enable()
    assert importlib_._find_spec is not plain
    coati_ext.disable()
    assert importlib_._find_spec is plain
    monkeypatch.setenv("COATI_EXT", "1")
    watch.activate()
    guard = imports.guard()
    with coati_ext.applied():
        assert imports.guard() is not guard
    assert imports.guard() is guard  # the flag still asks for patches
    import coati.models

    assert coati.models.RewardModel.forward.__module__.startswith("coati_ext.")
    coati_ext.disable()
    forget_coati()
    import_all()  # switched off by hand
    assert coati_ext.status().patches[0].state == "off"
