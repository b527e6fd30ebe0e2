"""Every hook that a plugin has works, or the plugin is refused: none is passed over in silence."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from pathlib import Path

import pytest

from coati_ext.errors import PluginError
from coati_ext.plan import make_plan
from coati_ext.plugins import load

HEAD = """
import asyncio, contextlib, functools, os, sys
import pluggy
import coati_ext
from coati_ext import hookimpl, option

def named_by_nobody(function):
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)
    return wrapper

def well_named(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)
    return wrapper

class Odd(Exception):
    def __str__(self):
        raise RuntimeError("no words")

class Callable:
    def __call__(self, hidden):
        return hidden[:, 0]

"""


def at(line):
    """Where a line of a plugin is, after the head."""
    return f"line {HEAD.count(chr(10)) + line}"


GOOD = "@hookimpl\ndef experience_made(experience):\n    pass\n"
HIDDEN = "(hidden):\n    return hidden[:, 0]\n"

# What each must be told, besides the plugin's file.
WRONG = {
    # what ends a process, or an import
    "sys.exit": ("sys.exit()", ["SystemExit", at(1)]),
    "sys.exit 0": ("sys.exit(0)", ["SystemExit: 0", at(1)]),
    "sys.exit text": ("sys.exit('gone')", ["SystemExit: gone"]),
    "interrupt": ("raise KeyboardInterrupt", ["KeyboardInterrupt", at(1)]),
    "generator exit": ("raise GeneratorExit", ["GeneratorExit"]),
    "cancelled": ("raise asyncio.CancelledError", ["CancelledError"]),
    "base exception": ("raise BaseException('odd')", ["BaseException: odd"]),
    "memory": ("raise MemoryError", ["MemoryError"]),
    "recursion": ("def f(): f()\nf()", ["RecursionError"]),
    "no words": ("raise Odd", ["Odd"]),
    "gone from sys.modules": ("del sys.modules[__name__]\nraise Odd", ["Odd"]),
    "exit in a registration": (
        "@hookimpl\ndef register_patches(register):\n    sys.exit()",
        ["SystemExit", at(3)],
    ),
    # no hook
    "empty": ("", ["has no hook", "@coati_ext.hookimpl"]),
    "forgotten": (
        f"def pool_reward{HIDDEN}",
        [at(1), "pool_reward looks like a hook: decorate it with @coati_ext.hookimpl"],
    ),
    "forgotten, misspelt": (f"def pool_rewards{HIDDEN}", [at(1), "looks like pool_reward"]),
    "one of two forgotten": (f"{GOOD}def pool_reward{HIDDEN}", ["pool_reward looks like a hook"]),
    "another marker": (
        f"{GOOD}@pluggy.HookimplMarker('coati')\ndef pool_reward{HIDDEN}",
        ["pool_reward looks like a hook"],
    ),
    "partial, forgotten": (
        f"{GOOD}pool_reward = functools.partial(max, 1)",
        ["pool_reward looks like a hook"],
    ),
    # no plain function
    "async": (f"@hookimpl\nasync def pool_reward{HIDDEN}", [at(1), "pool_reward is async"]),
    "async observer": (
        "@hookimpl\nasync def experience_made(experience):\n    pass",
        [at(1), "experience_made is async"],
    ),
    "async generator": (
        "@hookimpl\nasync def experience_made(experience):\n    yield",
        ["experience_made is async"],
    ),
    "generator": ("@hookimpl\ndef pool_reward(hidden):\n    yield hidden", [at(1), "yields"]),
    "generator observer": (
        "@hookimpl\ndef experience_made(experience):\n    yield",
        [at(1), "experience_made yields"],
    ),
    "wrapper": (
        "@hookimpl(wrapper=True)\ndef experience_made(experience):\n    yield",
        [at(1), "a wrapper around it would not run"],
    ),
    "class": (f"@hookimpl\nclass pool_reward:\n    def __call__{HIDDEN[:8]}: pass", ["is a class"]),
    "partial": (
        "pool_reward = hookimpl(functools.partial(lambda hidden, x: hidden, x=1))",
        ["pool_reward is a partial"],
    ),
    "instance": ("pool_reward = hookimpl(Callable())", ["pool_reward is a Callable"]),
    # arguments
    "**kwargs": (
        "@hookimpl\ndef pool_reward(hidden, **kwargs):\n    return hidden[:, 0]",
        [at(1), "takes **kwargs", "'positions'"],
    ),
    "*args": (
        "@hookimpl\ndef pool_reward(*args):\n    return args[0][:, 0]",
        [at(1), "takes *args"],
    ),
    "decorator": (
        f"@hookimpl(specname='pool_reward')\n@named_by_nobody\ndef first{HIDDEN}",
        ["takes *args", "functools.wraps"],
    ),
    "misspelt default": (
        "@hookimpl\ndef pool_reward(hidden, position=None):\n    return hidden[:, 0]",
        ["no argument position", "did you mean positions"],
    ),
    "misspelt keyword": (
        "@hookimpl\ndef pool_reward(hidden, *, modle):\n    return hidden[:, 0]",
        ["no argument modle", "did you mean model"],
    ),
    # registrations
    "returns its patches": (
        "@hookimpl\ndef register_patches(register):\n    return [1]",
        [at(1), "register_patches returned [1]"],
    ),
    "option without default": (
        "import dataclasses\n@dataclasses.dataclass(frozen=True)\nclass Options:\n    x: int\n"
        "@hookimpl\ndef register_options(register):\n    register('mine', Options)",
        ["mine.x has no default", at(7)],
    ),
    "option of no type": (
        "import dataclasses\n@dataclasses.dataclass(frozen=True)\nclass Options:\n"
        "    x: 'Nowhere' = option(1, 'help')\n"
        "@hookimpl\ndef register_options(register):\n    register('mine', Options)",
        ["NameError", "Nowhere"],
    ),
}

GIVE = "\n    return hidden[:, positions]"
RIGHT = {
    "default": f"@hookimpl\ndef pool_reward(hidden, positions=None):{GIVE}",
    "keyword": f"@hookimpl\ndef pool_reward(hidden, *, positions):{GIVE}",
    "keyword default": (f"@hookimpl\ndef pool_reward(*, positions=None, hidden):{GIVE}"),
    "all, one a default": (
        "@hookimpl\ndef pool_reward(hidden, attention_mask, positions, model=None):\n"
        f"    assert model == 'model'{GIVE}"
    ),
    "other order": f"@hookimpl\ndef pool_reward(positions, hidden):{GIVE}",
    "decorated": (f"@hookimpl\n@well_named\ndef pool_reward(positions, hidden):{GIVE}"),
    "marked, then decorated": (
        f"@well_named\n@hookimpl\ndef pool_reward(hidden, positions=0):\n{GIVE[1:]}"
    ),
    "lambda": "pool_reward = hookimpl(lambda hidden, positions: hidden[:, positions])",
    "bound method": (
        "class Mine:\n    @hookimpl\n    def first(self, hidden, positions=None):\n"
        "        return hidden[:, positions]\npool_reward = Mine().first"
    ),
    "imported helper": (
        "from coati_ext.hookspecs import shape_reward\n"
        f"@hookimpl\ndef pool_reward(hidden, positions):{GIVE}"
    ),
    "odd globals": (
        "class Proxy:\n    def __getattr__(self, name): raise RuntimeError('not yet')\n"
        "proxy = Proxy()\ndef __getattr__(name):\n    raise AttributeError(name)\n"
        f"@hookimpl\ndef pool_reward(hidden, positions):{GIVE}"
    ),
    "positional": f"@hookimpl\ndef pool_reward(hidden, /, positions=0):{GIVE}",
}


def load_file(code):
    Path("mine.py").write_text(HEAD + code)
    sys.modules.pop("coati_ext_plugin_mine", None)
    registry = load([("./mine.py", "a test", Path.cwd())])
    return registry, next(item for item in registry.plugins if item.name == "mine")


@pytest.mark.attack
def test_a_wrong_plugin_is_refused_with_its_reason(tally):
    silent = []
    for name, (code, told) in WRONG.items():
        _, plugin = load_file(code)
        if not all(part in plugin.error for part in [*told, "mine.py"]) or plugin.hooks:
            silent.append((name, plugin.error))
    tally("wrong plugins", len(WRONG), len(silent))
    assert silent == []


def test_a_wrong_plugin_stops_training_by_its_name(newest):
    Path("mine.py").write_text(HEAD + WRONG["sys.exit"][0])
    plan = make_plan({"plugins": ["./mine.py"]})
    with pytest.raises(PluginError, match=rf"mine \(enable\(\)\): SystemExit.*mine\.py, {at(1)}"):
        plan.check()


@pytest.mark.parametrize("name", RIGHT)
def test_a_hook_gets_every_argument_that_it_names(name):
    import torch

    registry, plugin = load_file(RIGHT[name])
    assert (plugin.error, plugin.hooks) == ("", ("pool_reward",))
    (item,) = [it for it in registry.implementations("pool_reward") if it.plugin is plugin]
    assert item.name == ("first" if name == "bound method" else "mine")
    hidden = torch.randn(2, 5, 3)
    pool = registry.resolve("pool_reward", item)
    assert pool(hidden, None, 2, "model").equal(hidden[:, 2])


def test_an_observer_gets_every_argument_that_it_names():
    registry, _ = load_file(
        "SEEN = []\n@hookimpl\ndef experience_made(*, experience=None, maker='absent'):\n"
        "    SEEN.append((experience, maker))"
    )
    registry.observer("experience_made", off=["metrics"])(
        experience="made", maker="maker", rollout=None, judgement=None
    )
    assert sys.modules["coati_ext_plugin_mine"].SEEN == [("made", "maker")]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("raise Odd", "failed: Odd"),
        ("return asyncio.sleep(0)", "returned <coroutine .*nothing awaits"),
        ("experience.reward.mul_(0)", "has changed experience.reward"),
        ("experience.reward = experience.reward * 0", "has changed experience.reward"),
    ],
    ids=["raises", "returns a coroutine", "changes in place", "replaces"],
)
@pytest.mark.filterwarnings("ignore:coroutine")
def test_an_observer_at_fault_is_named(body, told):
    from types import SimpleNamespace

    import torch

    registry, _ = load_file(f"@hookimpl\ndef experience_made(experience):\n    {body}")
    made = SimpleNamespace(reward=torch.ones(2), kl=None)
    with pytest.raises(PluginError, match=rf"plugin mine \(.*{at(1)}\) {told}"):
        registry.observer("experience_made", off=["metrics"])(
            experience=made, maker=None, rollout=None, judgement=None
        )


OBJECT = """
import functools
from coati_ext import hookimpl

class Mine:
    __slots__ = ()

    @property
    def state(self):
        raise RuntimeError("not yet")

    @hookimpl
    def pool_reward(self, hidden, positions=None):
        return hidden[:, positions]

    @classmethod
    @hookimpl(specname="shape_reward")
    def shaped(cls, log_ratio):
        return log_ratio

    @staticmethod
    @hookimpl(specname="experience_made")
    def seen(experience):
        pass

class Hidden(Mine):
    @property
    @hookimpl(specname="shape_reward")
    def shaped(self):
        return lambda log_ratio: log_ratio

class Failing(Mine):
    @property
    def score_rows(self):
        raise RuntimeError("not yet")

mine, hidden, failing = Mine(), Hidden(), Failing()
"""


def installed(monkeypatch, folder, *values):
    """Load what the entry points of an installed distribution name."""
    (folder / "objects.py").write_text(OBJECT)
    info = folder / "objects-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: objects\nVersion: 1.0\n")
    lines = "".join(f"{value} = objects:{value}\n" for value in values)
    (info / "entry_points.txt").write_text(f"[coati_ext]\n{lines}")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "objects", raising=False)
    registry = load([])
    return registry, {item.name: item for item in registry.plugins if not item.builtin}


def test_an_object_is_a_plugin_whatever_else_it_has(monkeypatch, tmp_path):
    registry, plugins = installed(monkeypatch, tmp_path, "mine")
    assert plugins["mine"].error == ""
    assert plugins["mine"].hooks == ("experience_made", "pool_reward", "shape_reward")
    assert {item.name for item in registry.implementations("shape_reward")} >= {"shaped"}


def test_an_objects_hooks_are_not_lost_under_a_descriptor(monkeypatch, tmp_path):
    _, plugins = installed(monkeypatch, tmp_path, "hidden", "failing", "Mine")
    assert "another decorator hides that shaped is a hook" in plugins["hidden"].error
    assert "score_rows cannot be read: RuntimeError: not yet" in plugins["failing"].error
    assert "have you forgotten the ()" in plugins["Mine"].error


def test_one_plugin_under_two_names_is_refused(tmp_path, monkeypatch):
    Path("twice.py").write_text(HEAD + GOOD)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("again.py").write_text("import sys, twice\nsys.modules[__name__] = twice\n")
    plugins = load([("twice", "a test", None), ("again", "a test", None)]).broken
    assert [(item.name, "loaded already, as plugin twice" in item.error) for item in plugins] == [
        ("again", True)
    ]


def test_what_a_plugin_prints_is_not_among_the_json(newest, capfd):
    from coati_ext.cli import main

    Path("coati-ext.toml").write_text('plugins = ["./loud.py"]\n')
    loud = """
    import os, sys
    print("at import")
    os.write(1, b"to the descriptor\\n")
    os.system("echo from a child")

    @hookimpl
    def register_defects(register):
        print("at registration", end="")
    """
    Path("loud.py").write_text(HEAD + textwrap.dedent(loud))
    for command in ("plan", "plugins", "doctor"):
        sys.modules.pop("coati_ext_plugin_loud", None)
        assert main([command, "--json"]) == 0
        out, err = capfd.readouterr()
        assert isinstance(json.loads(out), dict)
        for part in ("at import", "to the descriptor", "from a child", "at registration"):
            assert part in err
    os.write(1, b"again to standard output")
    assert capfd.readouterr().out == "again to standard output"
