"""Settings: every layer, their order, where a value came from, and what bad input is told."""

from __future__ import annotations

import base64
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import pytest

from coati_ext.errors import ConfigError
from coati_ext.patching.patch import Patch, Site
from coati_ext.settings import FROZEN, collect, freeze, from_text, only, option, resolve

NAN, INF = float("nan"), float("inf")
SITE = Site("coati.m:f", "ours:f", generations=("G1",))
PATCHES = {
    "eos_pooling": Patch("eos_pooling", "", (SITE,), default=True),
    "reward_scaling": Patch("reward_scaling", "", (SITE,)),
}


@dataclass(frozen=True)
class Options:
    pooling: str = option("eos", "", chooses="pool_reward", formerly={"mean": "masked_mean"})
    lam: float = option(0.95, "", minimum=0.0, maximum=1.0)
    steps: int = option(3, "")
    kind: str = option("mean", "", choices=("mean", "sum"))
    verbose: bool = option(False, "")
    clip: float = option(5.0, "", minimum=0.0, defaults={"G1": 0.0})
    gamma: Optional[float] = option(None, "", minimum=0.0, maximum=1.0)


def settings(config=None, generation=None):
    return resolve(
        collect(config),
        PATCHES,
        {"eos_pooling": Options},
        {"pool_reward": ["eos", "masked_mean", "mine"]},
        generation,
    )


def problems(config=None):
    with pytest.raises(ConfigError) as error:
        settings(config)
    return str(error.value)


def value(name, config=None):
    section, key = name.split(".")
    found = settings(config)
    item = found.enabled[section] if key == "enabled" else found.sections[section][key]
    return item.value, item.origin


def test_defaults():
    assert value("eos_pooling.enabled") == (True, "default")
    assert value("reward_scaling.enabled") == (False, "default")
    assert value("eos_pooling.lam") == (0.95, "default")


def test_a_generation_can_have_a_default_of_its_own():
    def clip(config, generation):
        return settings(config, generation).sections["eos_pooling"]["clip"].value

    assert [clip(None, name) for name in (None, "G4", "G1")] == [5.0, 5.0, 0.0]
    assert clip({"eos_pooling": {"clip": 3}}, "G1") == 3.0


@pytest.mark.parametrize(
    "config", [{"eos_pooling": {"pooling": "mean"}}, {"use": {"pool_reward": "mean"}}]
)
def test_an_implementation_may_be_named_as_it_was_before(config):
    with pytest.warns(FutureWarning, match="= 'mean' .*it is called 'masked_mean' now"):
        found = settings(config)
    assert found.use["pool_reward"].value == "masked_mean"


@pytest.mark.filterwarnings("error")
def test_a_name_of_before_that_a_plugin_has_now_is_the_plugins():
    choices = {"pool_reward": ["eos", "masked_mean", "mean"]}
    layers = collect({"use": {"pool_reward": "mean"}})
    found = resolve(layers, PATCHES, {"eos_pooling": Options}, choices)
    assert found.use["pool_reward"].value == "mean"


def test_an_option_may_be_left_unset(monkeypatch):
    assert value("eos_pooling.gamma") == (None, "default")
    assert value("eos_pooling.gamma", {"eos_pooling": {"gamma": 1}})[0] == 1.0
    monkeypatch.setenv("COATI_EXT_SET", "eos_pooling.gamma=0.5")
    assert value("eos_pooling.gamma")[0] == 0.5
    assert "wants a number at least 0.0 and at most 1.0" in problems({"eos_pooling": {"gamma": 2}})


def test_each_layer_beats_the_one_below_and_is_remembered(monkeypatch):
    Path("pyproject.toml").write_text("[tool.coati-ext.eos_pooling]\nlam = 0.1\n")
    assert value("eos_pooling.lam") == (0.1, "pyproject.toml line 2")
    Path("coati-ext.toml").write_text("[eos_pooling]\n\nlam = 0.2\n")
    assert value("eos_pooling.lam") == (0.2, "coati-ext.toml line 3")
    monkeypatch.setenv("COATI_EXT_SET", "eos_pooling.lam=0.3")
    assert value("eos_pooling.lam") == (0.3, "environment COATI_EXT_SET")
    assert value("eos_pooling.lam", {"eos_pooling": {"lam": 0.4}}) == (0.4, "enable()")


def test_a_path_argument_is_read_instead_of_the_files_found(tmp_path):
    Path("coati-ext.toml").write_text("[eos_pooling]\nsteps = 9\n")
    other = tmp_path / "other.toml"
    other.write_text("[eos_pooling]\nlam = 0.5\n")
    assert value("eos_pooling.steps", other) == (3, "default")
    assert value("eos_pooling.lam", str(other))[0] == 0.5


def test_the_environment_can_name_the_file(monkeypatch, tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "any.toml").write_text("[eos_pooling]\nsteps = 7\n")
    monkeypatch.setenv("COATI_EXT_CONFIG", "deep/any.toml")
    assert value("eos_pooling.steps")[0] == 7
    monkeypatch.setenv("COATI_EXT_CONFIG", "absent.toml")
    assert "absent.toml, named by COATI_EXT_CONFIG" in problems()


@pytest.mark.parametrize("flag", ["1", "on", "TRUE", "yes"])
def test_a_plain_flag_means_what_the_files_say(monkeypatch, flag):
    monkeypatch.setenv("COATI_EXT", flag)
    assert not collect().killed
    assert value("eos_pooling.enabled") == (True, "default")


@pytest.mark.parametrize("flag", ["0", "off", "False", "no"])
def test_the_kill_switch(monkeypatch, flag):
    monkeypatch.setenv("COATI_EXT", flag)
    assert collect().killed


def test_an_empty_flag_is_an_unset_one(monkeypatch):
    monkeypatch.setenv("COATI_EXT", "")
    assert not collect().killed


def test_a_list_of_patches_switches_on_exactly_these(monkeypatch):
    monkeypatch.setenv("COATI_EXT", "reward_scaling")
    Path("coati-ext.toml").write_text("[eos_pooling]\nenabled = true\n")
    assert value("reward_scaling.enabled") == (True, "environment COATI_EXT")
    assert value("eos_pooling.enabled") == (False, "environment COATI_EXT")
    assert value("eos_pooling.enabled", {"eos_pooling": {"enabled": True}})[0] is True


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("eos_pooling.verbose=true", "eos_pooling.verbose", True),
        ("eos_pooling.verbose=0", "eos_pooling.verbose", False),
        (" eos_pooling.steps = 4 ,", "eos_pooling.steps", 4),
        ("eos_pooling.kind=sum,eos_pooling.lam=1", "eos_pooling.lam", 1.0),
        ("eos_pooling.enabled=no", "eos_pooling.enabled", False),
    ],
)
def test_the_environment_is_parsed_by_type(monkeypatch, text, name, expected):
    monkeypatch.setenv("COATI_EXT_SET", text)
    assert value(name)[0] == expected


def test_an_option_can_name_a_choice(monkeypatch):
    found = settings({"eos_pooling": {"pooling": "mine"}})
    assert found.use["pool_reward"].value == "mine"
    assert settings().use == {}  # the default leaves a lone plugin its turn
    told = problems({"eos_pooling": {"pooling": "mine"}, "use": {"pool_reward": "eos"}})
    assert "name two implementations of pool_reward" in told


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (
            {"eos_poling": {"lam": 1}},
            "eos_poling: no such patch or section; did you mean eos_pooling?",
        ),
        ({"eos_pooling": {"lamb": 1}}, "eos_pooling.lamb: no such option; did you mean lam?"),
        (
            {"eos_pooling": {"lam": 1.5}},
            "eos_pooling.lam = 1.5: wants a number at least 0.0 and at most 1.0",
        ),
        ({"eos_pooling": {"lam": "high"}}, "wants a number"),
        ({"eos_pooling": {"lam": True}}, "wants a number"),
        ({"eos_pooling": {"steps": 1.5}}, "wants a whole number"),
        ({"eos_pooling": {"kind": "men"}}, "wants 'mean' or 'sum'; did you mean mean?"),
        (
            {"eos_pooling": {"pooling": "min"}},
            "no plugin offers pool_reward under that name; did you mean mine?",
        ),
        ({"eos_pooling": {"pooling": 3}}, "wants a text"),
        ({"eos_pooling": {"enabled": "perhaps"}}, "wants true or false"),
        ({"eos_pooling": True}, "wants a section, as in eos_pooling.enabled = true"),
        ({"polcy": "strict"}, "polcy: no such patch or setting; did you mean policy?"),
        ({"policy": "lax"}, "policy = 'lax': wants 'strict' or 'structural'"),
        ({"plugins": "one.py"}, "wants a list of modules or .py files"),
        (
            {"use": {"pool_rewards": "eos"}},
            "use.pool_rewards: no such choice hook; did you mean pool_reward?",
        ),
        ({"use": {"pool_reward": "masked_men"}}, "did you mean masked_mean?"),
        ({"use": 5}, "use = 5: wants a section, as in use.pool_reward = 'NAME'"),
        ({"policy": {"strict": True}}, "policy: wants a value, not a section"),
        ({"policy": "stric"}, "wants 'strict' or 'structural'; did you mean strict?"),
        ({"policy": ["strict"]}, "policy = ['strict']: wants 'strict' or 'structural'"),
        ({"eos_pooling": {"lam": NAN}}, "lam = nan: wants a finite number at least 0.0"),
        ({"eos_pooling": {"clip": INF}}, "clip = inf: wants a finite number at least 0.0"),
        ({"eos_pooling": {"lam": "nan"}}, "lam = 'nan': wants a finite number"),
        ({"eos_pooling": {"lam": 10**5000}}, "lam = <int that cannot be shown>: wants a finite"),
        ({"eos_pooling": {"steps": 2**63}}, "wants a whole number of at most 64 bits"),
        ({"rank_check": INF}, "rank_check = inf: wants seconds, or 0 to compare nothing, at most"),
        ({"rank_check": 1e300}, "rank_check = 1e+300: wants seconds"),
        ({"rank_check": -1}, "rank_check = -1: wants seconds"),
        ({1: 2}, "1: wants the name of a setting or section"),
        ({None: {"lam": 1}}, "None: wants the name of a setting or section"),
        ({"": {"policy": "strict"}}, "'': wants the name of a setting or section"),
        ({"eos_pooling": {1: 2}}, "1 in eos_pooling: wants the name of a setting"),
        ({"COATI_EXT": {"only": 5}}, "'COATI_EXT': wants the name of a setting or section"),
        ({"eos_pooling": {"kind": "x" * 10_000}}, f"kind = '{'x' * 79}...: wants"),
        ({"x" * 10_000: 1}, f"'{'x' * 79}...: no such patch or setting"),
        ({"a\x1b[31m": 1}, r"'a\x1b[31m': no such patch or setting"),
    ],
    ids=lambda item: None if isinstance(item, str) else "",
)
def test_bad_input_is_named_with_what_was_expected_and_the_nearest_match(config, told):
    assert told in problems(config)


def test_all_problems_are_told_at_once_with_their_lines():
    Path("coati-ext.toml").write_text(
        'policy = "lax"\n[eos_poling]\nenabled = true\n\n[eos_pooling]\n"lam" = 7\n'
    )
    told = problems()
    assert "3 problems in the coati-ext settings" in told
    assert "coati-ext.toml line 1" in told
    assert "coati-ext.toml line 3" in told
    assert "coati-ext.toml line 6" in told
    assert "Known patches and sections: eos_pooling, reward_scaling" in told


def test_an_empty_section_is_known_or_told():
    Path("coati-ext.toml").write_text("[eos_pooling]\n[use]\n")
    assert settings().use == {}
    Path("coati-ext.toml").write_text("\n[eos_poling]\n")
    assert "eos_poling: no such patch or section" in problems()
    assert "coati-ext.toml line 2" in problems()


def test_dotted_keys_have_lines_too():
    Path("coati-ext.toml").write_text("policy = 'strict'\neos_pooling.lam = 9\n")
    assert "eos_pooling.lam = 9" in problems()
    assert "coati-ext.toml line 2" in problems()


def test_what_is_no_mapping_of_settings_is_told():
    assert "enable() wants None, a path or a mapping of settings, got a list" in problems(["eos"])
    Path("pyproject.toml").write_text("[tool]\ncoati-ext = 3\n")
    assert "pyproject.toml: tool.coati-ext = 3: wants a table of settings" in problems()


def test_a_malformed_setting_and_an_unknown_patch_in_the_environment(monkeypatch):
    monkeypatch.setenv("COATI_EXT_SET", "lam")
    monkeypatch.setenv("COATI_EXT", "eos_polling")
    told = problems()
    assert "lam: wants section.key=value" in told
    assert "eos_polling: no such patch; did you mean eos_pooling?" in told


def test_a_file_that_is_not_toml_or_not_text():
    Path("coati-ext.toml").write_text("[eos_pooling\n")
    assert "coati-ext.toml is not TOML" in problems()
    Path("coati-ext.toml").write_bytes(b"\xff\xfe\x00")
    assert "cannot read coati-ext.toml" in problems()


def test_what_lies_where_a_file_should_is_told(monkeypatch, tmp_path):
    def told(make):
        make()
        found = problems()
        Path("coati-ext.toml").unlink()
        return found

    file = Path("coati-ext.toml")
    expected = "cannot read coati-ext.toml: it is a link to nowhere.toml, which is not there"
    assert told(lambda: file.symlink_to("nowhere.toml")) == expected
    expected = "cannot read coati-ext.toml: it is a pipe or a device, a file was expected"
    assert told(lambda: os.mkfifo(file)) == expected
    assert told(lambda: file.symlink_to("/dev/zero")) == expected
    for name, environment in (("coati-ext.toml", ""), ("pyproject.toml", ""), ("any", "any")):
        monkeypatch.setenv("COATI_EXT_CONFIG", environment)
        Path(name).mkdir()
        by = ", named by COATI_EXT_CONFIG" if environment else ""
        assert problems() == f"cannot read {name}{by}: it is a folder, a file was expected"
        assert problems(Path(name)).startswith(f"cannot read {name}, named by enable(): it is a")
        Path(name).rmdir()
    monkeypatch.setenv("COATI_EXT_CONFIG", os.devnull)  # says that no file counts
    file.write_text("nonsense")
    assert settings().use == {}


def test_a_file_may_begin_with_a_byte_order_mark():
    text = "policy = 'structural'"
    Path("coati-ext.toml").write_text(text, encoding="utf-8-sig")
    assert settings().policy.value == "structural"
    Path("coati-ext.toml").write_text(text, encoding="utf-16")
    assert "cannot read coati-ext.toml: it is not text in UTF-8" in problems()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("policy = strict", ': quote texts, as in policy = "strict"'),
        ("[eos_pooling]\n\npooling = masked_mean  # or eos", 'as in pooling = "masked_mean"'),
        ("[eos_pooling]\nenabled = True", ": write enabled = true"),
        ("x = " + "[" * 5000, "it is nested too deeply"),
        ("x = " + "1" * 5000, "is not TOML"),
        ("x = [", "is not TOML"),
    ],
    ids=lambda text: text[:20],
)
def test_what_to_write_instead_where_a_file_is_not_toml(text, told):
    Path("coati-ext.toml").write_text(text)
    if text.endswith("1" * 5000) and not hasattr(sys, "set_int_max_str_digits"):
        told = "x: no such patch or setting"
    assert told in problems()


@pytest.mark.parametrize("text", ["tool = 5", "tool = []", "[[tool]]"])
def test_a_project_file_whose_tools_are_no_table(text):
    Path("pyproject.toml").write_text(text)
    assert "pyproject.toml: tool = " in problems()
    assert "wants a table of settings" in problems()


def test_a_flag_that_names_no_patch_is_told(monkeypatch):
    monkeypatch.setenv("COATI_EXT", " , ")
    assert "no patch is named: wants 1, 0 or names of patches" in problems()


def test_a_setting_of_the_environment_has_a_section_of_its_own_or_none(monkeypatch):
    for text in (".policy=strict", "COATI_EXT.only=eos_pooling", "="):
        monkeypatch.setenv("COATI_EXT_SET", text)
        assert f"{text}: wants section.key=value" in problems()


@pytest.mark.parametrize(
    "rows",
    [
        "[" * 100_000,
        '[["", "policy", ' + "[" * 10_000 + "]" * 10_000 + ', "x"]]',
        '[["eos_pooling", "steps", ' + "9" * 5000 + ', "x"]]',
        '{"abcd": 1}',
        "[5]",
        '["abcd"]',
        '[[1, "policy", "strict", "x"]]',
        '[["", ["policy"], "strict", "x"]]',
        '[["", "policy", "strict", 3]]',
        '[["COATI_EXT", "only", 5, "x"]]',
        '[["COATI_EXT", "only", [5], "x"]]',
        '[["", "policy", "strict"]]',
    ],
    ids=lambda rows: rows[:34],
)
def test_frozen_layers_of_other_types_are_named_too(monkeypatch, rows):
    monkeypatch.setenv(FROZEN, base64.urlsafe_b64encode(rows.encode()).decode().rstrip("="))
    told = problems()
    assert f"{FROZEN}=" in told or "steps = <int" in told  # an old Python reads all digits
    assert len(told) < 700


def test_plugins_of_another_type_in_frozen_layers_are_told(monkeypatch):
    rows = json.dumps([["", "plugins", [1, {}], "x"]]).encode()
    monkeypatch.setenv(FROZEN, base64.urlsafe_b64encode(rows).decode())
    assert "plugins = [1, {}]: wants a list of modules or .py files   (x, frozen)" in problems()
    assert collect().plugins == []


def test_what_cannot_be_handed_to_other_processes_is_told():
    again = []
    again.append(again)
    for value in (again, {1: 1, "a": 2}, {(): 1}):
        with pytest.raises(ConfigError, match="cannot be handed to other processes"):
            freeze(collect({"eos_pooling": {"lam": [value]}}))


def test_plugins_add_up_over_the_layers_and_remember_their_folder(monkeypatch, tmp_path):
    Path("coati-ext.toml").write_text('plugins = ["./mine.py", "package.hooks"]\n')
    monkeypatch.setenv("COATI_EXT_SET", "plugins=other,plugins=package.hooks")
    named = collect().plugins
    assert [name for name, _, _ in named] == ["./mine.py", "package.hooks", "other"]
    assert named[0][1:] == ("coati-ext.toml line 1", tmp_path)


def test_frozen_layers_are_the_only_source_beside_the_argument_and_the_kill_switch(
    monkeypatch, tmp_path
):
    Path("pyproject.toml").write_text("[tool.coati-ext.eos_pooling]\nsteps = 8\n")
    Path("coati-ext.toml").write_text(
        "plugins = ['./mine.py', 'package.hooks']\n[eos_pooling]\nlam = 0.2\nkind = 'sum'\n"
    )
    monkeypatch.setenv("COATI_EXT", "eos_pooling")
    monkeypatch.setenv("COATI_EXT_SET", "eos_pooling.clip=3,plugins=./other.py")
    read = settings()
    frozen = freeze(collect())
    assert freeze(collect()) == frozen  # equal layers, equal letters
    monkeypatch.setenv(FROZEN, frozen)
    monkeypatch.setenv("COATI_EXT", "reward_scaling")
    monkeypatch.setenv("COATI_EXT_SET", "eos_pooling.lam=0.9")
    monkeypatch.setenv("COATI_EXT_CONFIG", "absent.toml")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    found = settings()
    assert {k: v.value for k, v in found.sections["eos_pooling"].items()} == {
        k: v.value for k, v in read.sections["eos_pooling"].items()
    }
    assert value("eos_pooling.steps") == (8, "pyproject.toml line 2, frozen")
    assert value("eos_pooling.lam") == (0.2, "coati-ext.toml line 3, frozen")
    assert value("eos_pooling.clip") == (3.0, "environment COATI_EXT_SET, frozen")
    assert value("eos_pooling.enabled") == (True, "environment COATI_EXT, frozen")
    assert value("reward_scaling.enabled") == (False, "environment COATI_EXT, frozen")
    assert value("eos_pooling.verbose") == (False, "default")
    names = [name for name, _, _ in collect().plugins]
    assert names == [str(tmp_path / "mine.py"), "package.hooks", str(tmp_path / "other.py")]
    assert freeze(collect()) == frozen  # and again, as a job within a job does

    assert value("eos_pooling.lam", {"eos_pooling": {"lam": 0.4}}) == (0.4, "enable()")
    assert value("eos_pooling.kind", {"eos_pooling": {"lam": 0.4}})[0] == "sum"
    monkeypatch.setenv("COATI_EXT", "0")
    assert collect().killed


def test_options_of_run_lie_between_the_environment_and_the_argument(monkeypatch):
    monkeypatch.setenv("COATI_EXT_SET", "eos_pooling.lam=0.3,eos_pooling.steps=1")
    problems = []
    given = from_text(["eos_pooling.lam=0.5", "oops"], "coati-ext run --set", problems)
    layers = collect(
        {"eos_pooling": {"steps": 2}}, [only(["reward_scaling"], "coati-ext run --patch"), *given]
    )
    assert [(item.name, item.origin) for item in layers.entries] == [
        ("eos_pooling.lam", "environment COATI_EXT_SET"),
        ("eos_pooling.steps", "environment COATI_EXT_SET"),
        ("COATI_EXT.only", "coati-ext run --patch"),
        ("eos_pooling.lam", "coati-ext run --set"),
        ("eos_pooling.steps", "enable()"),
    ]
    assert problems == ["oops: wants section.key=value   (coati-ext run --set)"]


def test_frozen_layers_pass_through_a_shells_export(monkeypatch):
    import shlex
    import subprocess

    hard = "a,b \"c\" 'd' $HOME `id` \\ ~ * \u00e4\n"
    monkeypatch.setenv("COATI_EXT_SET", "eos_pooling.pooling=x")
    options = from_text([f"eos_pooling.kind={hard}x"], "coati-ext run --set", [])
    frozen = freeze(collect(None, options))
    assert set(frozen) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
    shell = f'export {FROZEN}="{frozen}" && env -i {FROZEN}=${FROZEN} sh -c {shlex.quote("env")}'
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True)
    assert f"{FROZEN}={frozen}" in done.stdout.splitlines()
    monkeypatch.setenv(FROZEN, frozen)
    assert collect().entries[-1].value == f"{hard}x"


@pytest.mark.parametrize(
    "text", ["x", "W10=!", "W10\u00e4", "bm90IGpzb24", "WzFd", "eyJhIjoxfQ", "MQ"], ids=ascii
)
def test_damaged_frozen_layers_are_named_with_the_way_out(monkeypatch, text):
    monkeypatch.setenv(FROZEN, text)
    told = problems()
    assert f"{FROZEN}={text} is damaged" in told
    assert "coati-ext run -- COMMAND" in told
    monkeypatch.setenv(FROZEN, freeze(collect_without(monkeypatch))[:-3])
    assert "is damaged" in problems()


def collect_without(monkeypatch):
    monkeypatch.delenv(FROZEN)
    monkeypatch.setenv("COATI_EXT_SET", "eos_pooling.lam=0.5")
    return collect()
