"""``docs/cli.md`` has the help texts and ``docs/settings.md`` the settings that the code has."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import typing

import pytest

from coati_ext.cli import _parser
from coati_ext.patching.patch import GENERATIONS
from coati_ext.patching.steps import POLICIES
from coati_ext.plan import make_plan
from coati_ext.settings import _LONGEST_RANK_CHECK, RANK_CHECK
from helpers import ROOT

CLI = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
SETTINGS = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")


def commands():
    """The command line's parser and that of each command, by name."""
    parser = _parser()
    (choices,) = (item.choices for item in parser._actions if isinstance(item.choices, dict))
    return {"": parser, **choices}


@pytest.mark.once(why="argparse's format differs between releases of Python")
@pytest.mark.parametrize("command", commands())
def test_the_page_has_the_help_of_every_command(monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "100")
    assert f"```text\n{commands()[command].format_help()}```\n" in CLI


@pytest.mark.parametrize("command", [name for name in commands() if name])
def test_every_command_has_a_heading_and_an_example_with_its_output(command):
    (section,) = re.findall(rf"^## {command}$(.*?)(?=^## |\Z)", CLI, re.DOTALL | re.MULTILINE)
    (example, *_) = re.findall(r"```console\n\$ (.*?)\n(?=.)(?!```)", section)
    assert f"coati-ext {command}" in example


def literal(value):
    """A value as TOML has it."""
    return "not set" if value is None else f"`{json.dumps(value)}`"


def default(field):
    """The default of an option, for each generation where it depends on that."""
    special = field.metadata.get("defaults")
    if not special:
        return literal(field.default)
    values = {name: literal(special.get(name, field.default)) for name in GENERATIONS}
    return ", ".join(
        f"{value} in {', '.join(name for name in GENERATIONS if values[name] == value)}"
        for value in dict.fromkeys(values.values())
    )


def allowed(field, kind, registry):
    """The values of an option."""
    limits = field.metadata
    if "chooses" in limits:
        hook = limits["chooses"]
        names = [item.name for item in registry.implementations(hook)]
        return ", ".join([*map(literal, names), f"a plugin (`{hook}`)"])
    if "choices" in limits:
        return ", ".join(map(literal, limits["choices"]))
    if "minimum" in limits:
        low, high = limits["minimum"], limits.get("maximum")
        return f"{low} or more" if high is None else f"{low} to {high}"
    assert kind is str
    return "a text"


def rows():
    """The cells of each row of the settings tables, by the name in the first."""
    lines = [line for line in SETTINGS.splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    found = {row[0].strip("`"): row[1:] for row in cells}
    assert len(found) == len(lines)
    return found


def test_the_page_has_every_option_with_its_default_and_values():
    registry = make_plan().registry
    expected = {}
    for section, options in registry.options.items():
        kinds = typing.get_type_hints(options)
        for item in dataclasses.fields(options):
            values = allowed(item, kinds[item.name], registry)
            expected[f"{section}.{item.name}"] = [default(item), values]
    found = {name: row for name, row in rows().items() if name.split(".")[0] in registry.options}
    assert {name: row[:2] for name, row in found.items()} == expected
    assert all(len(row) == 3 and row[2] for row in found.values())
    without = [name for name, it in registry.options.items() if not dataclasses.fields(it)]
    bare = ", ".join(f"`{name}`" for name in without)
    assert f"{' and '.join(bare.rsplit(', ', 1))} have no option but `enabled`" in SETTINGS


def test_the_page_has_the_settings_of_the_top_level():
    top = rows()
    assert top["policy"][:2] == [literal(POLICIES[0]), ", ".join(map(literal, POLICIES))]
    assert top["rank_check"][0] == literal(RANK_CHECK)
    assert top["rank_check"][1] == f"seconds, 0 to {_LONGEST_RANK_CHECK:.0f}"
    patches = make_plan().registry.patches
    off = [f", {literal(False)} of `{name}`" for name, it in patches.items() if not it.default]
    assert top["PATCH.enabled"][0] == literal(True) + "".join(off)
    assert {"plugins", "use.HOOK"} <= set(top)


@pytest.mark.once(why="the source is the same on every stack")
def test_the_page_has_every_environment_variable():
    files = [file for folder in ("coati_ext", "patches") for file in (ROOT / folder).rglob("*.py")]
    used = {
        node.value
        for file in files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and re.fullmatch(r"COATI_EXT\w*", str(node.value))
    }
    assert {name for name in rows() if name.startswith("COATI_EXT")} == used
