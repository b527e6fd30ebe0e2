"""Plugins: every way in, isolation of broken ones, and the choice of one implementation."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest

import coati_ext
from coati_ext.cli.measure import measure
from coati_ext.errors import AlreadyEnabledError, ConfigError, PluginError, RefusedError
from coati_ext.patches import rollout
from coati_ext.patching.defect import Defect
from coati_ext.patching.source import find_coati
from coati_ext.plan import make_plan

POOL = """
from coati_ext import hookimpl

@hookimpl
def pool_reward(hidden, positions):
    return hidden[:, 0]
"""


def write(name: str, text: str) -> str:
    Path(name).write_text(textwrap.dedent(text))
    return f"./{name}"


def plan_with(*plugins: str, **more):
    return make_plan({"plugins": list(plugins), **more})


def broken(plan):
    return {plugin.name: plugin.error for plugin in plan.registry.broken}


def test_built_ins_use_the_same_door():
    names = {plugin.name: plugin for plugin in make_plan().registry.plugins}
    assert {"eos_pooling", "left_padding", "stable_losses"} <= set(names)
    assert names["eos_pooling"].hooks == (
        "pool_reward",
        "register_defects",
        "register_options",
        "register_patches",
    )


def test_a_single_file_wins_over_the_built_in():
    plan = plan_with(write("first_token.py", POOL))
    assert plan.choices["pool_reward"].name == "first_token"


def test_two_implementations_of_one_name_are_told_with_their_places():
    named = POOL.replace("@hookimpl", "@hookimpl(specname='pool_reward')").replace(
        "def pool_reward", "def mine"
    )
    with pytest.raises(ConfigError) as caught:
        plan_with(write("one.py", named), write("two.py", named))
    told = str(caught.value)
    assert told.startswith("two plugins offer pool_reward under the name mine: ")
    assert "of plugin one (" in told
    assert "of plugin two (" in told
    assert told.endswith("and mark it by @hookimpl(specname='pool_reward')")


def test_a_module_on_the_path(monkeypatch, tmp_path):
    write("my_hooks.py", POOL)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert plan_with("my_hooks").choices["pool_reward"].name == "my_hooks"


def test_an_entry_point(monkeypatch, tmp_path):
    write("installed_hooks.py", POOL)
    info = tmp_path / "someones_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: someones-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[coati_ext]\nsomeones = installed_hooks\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    plan = make_plan()
    assert plan.choices["pool_reward"].name == "someones"
    (plugin,) = [item for item in plan.registry.plugins if item.name == "someones"]
    assert plugin.source.startswith("entry point installed_hooks")


def test_the_configuration_can_keep_the_built_in():
    file = write("first_token.py", POOL)
    assert plan_with(file, eos_pooling={"pooling": "eos"}).choices["pool_reward"].name == "eos"
    assert plan_with(file, use={"pool_reward": "masked_mean"}).choices["pool_reward"].name == (
        "masked_mean"
    )


def test_upstreams_sampler_may_be_named_as_in_0_4_0():
    with pytest.warns(FutureWarning, match=r"use\.sample_answers = 'upstream_sampler'"):
        plan = make_plan({"use": {"sample_answers": "upstream_sampler"}})
    assert plan.choices["sample_answers"].name == "upstream"
    assert plan.settings.sections["rollout"]["generate"].value == "upstream"
    with pytest.warns(FutureWarning):
        assert rollout.upstream_sampler is rollout.upstream


def test_an_option_that_chooses_names_what_was_picked():
    file = write("first_token.py", POOL)
    for config, name in (
        ({}, "first_token"),
        ({"use": {"pool_reward": "masked_mean"}}, "masked_mean"),
        ({"eos_pooling": {"pooling": "eos"}}, "eos"),
    ):
        settings = plan_with(file, **config).settings
        assert settings.sections["eos_pooling"]["pooling"].value == name


def test_a_choice_that_no_option_chooses_has_its_only_built_in():
    assert make_plan().choices["mark_actions"].name == "up_to_the_end"


def test_two_offers_need_a_decision():
    files = [write("one.py", POOL), write("two.py", POOL)]
    with pytest.raises(ConfigError, match=r'one, two.*\[use\] pool_reward = "one"'):
        plan_with(*files)
    assert plan_with(*files, use={"pool_reward": "two"}).choices["pool_reward"].name == "two"


def test_one_plugin_can_offer_several_by_the_functions_names():
    file = write(
        "several.py",
        """
        from coati_ext import hookimpl

        @hookimpl(specname="pool_reward")
        def first(hidden):
            return hidden[:, 0]

        @hookimpl(specname="pool_reward")
        def second(hidden):
            return hidden[:, 1]
        """,
    )
    plan = plan_with(file, eos_pooling={"pooling": "second"})
    assert plan.choices["pool_reward"].name == "second"


def test_the_picked_implementation_takes_its_subset_of_the_arguments():
    import torch

    pool = plan_with(write("first_token.py", POOL)).functions()["pool_reward"]
    hidden = torch.randn(2, 3, 4)
    assert pool(hidden, None, None, None).equal(hidden[:, 0])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import nowhere_to_be_found\n", ["ModuleNotFoundError", "nowhere_to_be_found", "line 1"]),
        ("def broken(:\n", ["SyntaxError", "line 1"]),
        (
            "from coati_ext import hookimpl\n\n@hookimpl\ndef pool_rewards(hidden):\n    pass\n",
            ["line 3", "no hook is called pool_rewards; did you mean pool_reward?"],
        ),
        (
            "from coati_ext import hookimpl\n@hookimpl\ndef pool_reward(hiden):\n    pass\n",
            ["line 2", "pool_reward has no argument hiden", "'hidden'"],
        ),
        (
            "from coati_ext import hookimpl\n@hookimpl(hookwrapper=True)\n"
            "def pool_reward(hidden):\n    yield\n",
            ["line 2", "a wrapper around it would not run"],
        ),
        (
            "from coati_ext import hookimpl\n@hookimpl\ndef register_patches(register):\n"
            "    register('eos')\n",
            ["register_patches wants coati_ext.Patch values, got 'eos'", "line 4"],
        ),
        (
            "from coati_ext import hookimpl\n@hookimpl\ndef register_options(register):\n"
            "    register('mine', dict)\n",
            ["register_options wants a dataclass for mine, got <class 'dict'>", "line 4"],
        ),
        (
            "from coati_ext import hookimpl\n@hookimpl\ndef register_defects(register):\n"
            "    register(1.0)\n",
            ["register_defects wants coati_ext.Defect values, got 1.0", "line 4"],
        ),
    ],
    ids=["import", "syntax", "hook", "argument", "wrapper", "patch", "options", "defect"],
)
def test_a_broken_plugin_is_named_with_file_and_line_and_stops_training(text, told):
    plan = plan_with(write("mine.py", text))
    (error,) = broken(plan).values()
    for part in [*told, "mine.py"]:
        assert part in error
    with pytest.raises(PluginError, match="will not train with broken plugins"):
        plan.check()


def test_a_file_in_use_stays_the_module_that_it_is():
    file = write("my_plugins.py", POOL)
    plan_with(file)
    module = sys.modules["coati_ext_plugin_my_plugins"]
    plan_with(file)
    assert sys.modules["coati_ext_plugin_my_plugins"] is module
    write("my_plugins.py", POOL + "\nraise RuntimeError('edited')\n")
    assert "my_plugins.py, line 8" in broken(plan_with(file))["my_plugins"]


def test_a_plugin_edited_after_enable_is_another_plan(upstream):
    file = write("first_token.py", POOL)
    with coati_ext.applied({"plugins": [file]}) as report:
        write("first_token.py", POOL.replace("0]", "1]"))
        assert coati_ext.status().digest == report.digest
        with pytest.raises(AlreadyEnabledError, match=f"digest: {report.digest} in force"):
            coati_ext.enable({"plugins": [file]})


def test_a_missing_file_and_a_name_taken_twice():
    plan = plan_with("./absent.py", write("eos_pooling.py", POOL))
    errors = [plugin.error for plugin in plan.registry.broken]
    assert "no plugin file" in errors[0]
    assert "two plugins are called eos_pooling" in errors[1]
    assert plan.choices["pool_reward"].name == "eos"


def test_what_a_broken_plugin_registered_does_not_count():
    file = write(
        "half.py",
        """
        from coati_ext import Patch, Site, hookimpl

        @hookimpl
        def register_patches(register):
            site = Site("coati.models:f", "half:f", generations=("G1",))
            register(Patch("half_done", "", (site,), default=True))
            raise RuntimeError("later")
        """,
    )
    plan = plan_with(file)
    assert "half_done" not in plan.registry.patches
    assert "RuntimeError: later" in broken(plan)["half"]


def test_a_plugins_text_is_part_of_the_digest():
    file = write("first_token.py", POOL)
    before = plan_with(file).digest
    write("first_token.py", POOL.replace("0]", "1]"))
    assert plan_with(file).digest != before


COMPLETE = """
from dataclasses import dataclass

import coati_ext
from coati_ext import Defect, Patch, Site, hookimpl, option

SEEN = []


@dataclass(frozen=True)
class Options:
    factor: float = option(2.0, "what losses are multiplied by", minimum=0.0)


def scaled(original, self, chosen_reward, reject_reward):
    return original(self, chosen_reward, reject_reward) * coati_ext.options("scale").factor


def measure():
    import torch
    from coati.models import LogExpLoss
    return float(LogExpLoss()(torch.zeros(1), torch.zeros(1)))


@hookimpl
def register_options(register):
    register("scale", Options)


@hookimpl
def register_patches(register):
    site = Site(
        "coati.models.loss:LogExpLoss.forward", "coati_ext_plugin_scale:scaled",
        generations=("G1", "G2", "G3", "G4"), mode="wrap", fits={"here": "FINGERPRINT"},
    )
    register(Patch("scale", "losses times a factor", (site,), default=True, after=AFTER))


@hookimpl
def register_defects(register):
    register(
        Defect("small loss", "scale", "loss at 0", ("G1", "G2", "G3", "G4"),
               "coati_ext_plugin_scale:measure", right=2 * 0.6931472, tolerance=1e-5)
    )


@hookimpl
def patch_applied(row):
    SEEN.append((row.name, row.state))
"""


def complete_plugin(after):
    function = find_coati().function("coati.models.loss", "LogExpLoss.forward")
    text = COMPLETE.replace("FINGERPRINT", function.fingerprint).replace("AFTER", repr(after))
    return write("scale.py", text)


def test_a_plugin_brings_a_patch_options_a_defect_and_an_observer(upstream):
    file = complete_plugin(after=("stable_losses",))
    (defect,) = [d for d in plan_with(file).registry.defects if d.patch == "scale"]
    assert measure(defect)["verdict"] == "wrong"
    with coati_ext.applied({"plugins": [file]}) as report:
        assert ("scale", "applied") in {(row.name, row.state) for row in report.patches}
        assert measure(defect)["verdict"] == "right"  # twice our own stable loss
        assert ("scale", "applied") in sys.modules["coati_ext_plugin_scale"].SEEN
    assert measure(defect)["verdict"] == "wrong"
    with coati_ext.applied({"plugins": [file], "scale": {"factor": 3}}):
        assert measure(defect)["value"] == pytest.approx(3 * 0.6931472)
    with pytest.raises(ConfigError, match=r"scale.factor = -1: wants a number at least 0.0"):
        plan_with(file, scale={"factor": -1})


def test_a_defect_that_ends_the_process_is_wrong_and_no_end(tmp_path, monkeypatch):
    write("leaves.py", "import sys\ndef measure():\n    sys.exit(0)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = measure(Defect("leaving", "mine", "", ("G4",), "leaves:measure"))
    assert (found["verdict"], found["value"]) == ("wrong", "SystemExit: 0")


def test_a_defect_that_is_not_measured_says_why(tmp_path, monkeypatch):
    told = "from coati_ext.errors import NotMeasuredError\ndef measure():\n"
    write("absent.py", f"{told}    raise NotMeasuredError('no vLLM here')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = measure(Defect("absent", "mine", "", ("G4",), "absent:measure"))
    assert (found["verdict"], found["value"]) == ("not measured", "no vLLM here")


def test_a_plugins_patch_of_a_built_ins_target_needs_an_order(upstream):
    with pytest.raises(RefusedError, match="stable_losses and scale both change"):
        plan_with(complete_plugin(after=()))
    with pytest.raises(ConfigError, match="builds upon stable_losses, which is off"):
        plan_with(complete_plugin(after=("stable_losses",)), stable_losses={"enabled": False})


def test_choices_and_options_are_there_only_while_enabled():
    with pytest.raises(RuntimeError, match=r"call coati_ext.enable\(\) first"):
        coati_ext.choice("pool_reward")
    with pytest.raises(RuntimeError, match=r"call coati_ext.enable\(\) first"):
        coati_ext.options("eos_pooling")
