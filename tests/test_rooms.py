"""The folders are as CONTRIBUTING.md draws them and as the import contracts check them."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

from coati_ext._toml import parse_toml
from helpers import ROOT

CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PROJECT = parse_toml((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CONTRACTS = {item["name"]: item for item in PROJECT["tool"]["importlinter"]["contracts"]}
PATCHES = sorted(item.parent.name for item in (ROOT / "patches").glob("*/__init__.py"))
USERS_OWN = {
    *("coati", "colossalai", "ray", "torch"),
    *("transformers", "safetensors", "tokenizers"),
}
# A test that needs one of them is passed over where it is missing.
STACK = {"datasets", "fabric"}
PEERS = {"trl"}  # measured beside coati by a benchmark, in an environment of their own
FINGERPRINT = re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{8}\b")
# They hold no logic of their own, or have to import what the rest may not.
UNDRAWN = {
    "__init__",
    "__main__",
    "_files",
    "_json",
    "_lazy",
    "_startup",
    "_toml",
    "__pycache__",
    "modules",
    "patches",
}


def layers():
    """The rows of the contract, each the modules that stand side by side."""
    rows = CONTRACTS["From the command line down to the maths"]["layers"]
    return [[name.strip().replace("coati_ext.", "") for name in row.split("|")] for row in rows]


def drawn():
    """The chain of nodes in the diagram, each with the modules of its label."""
    (diagram,) = re.findall(r"```mermaid\n(.*?)```", CONTRIBUTING, flags=re.DOTALL)
    chain = re.findall(r"^ +(\w+)(?:\[.*?\])? --> (\w+)\[", diagram, flags=re.MULTILINE)
    labels = dict(re.findall(r'(\w+)\["(.*?)"\]', diagram))
    names = [chain[0][0], *(after for _, after in chain)]
    assert [before for before, _ in chain] == names[:-1]
    dashed = set(re.findall(r"^ +patches -\.-> (\w+)$", diagram, flags=re.MULTILINE))
    return [[name.strip() for name in labels[node].split("|")] for node in names], dashed


def test_the_diagram_is_the_contract():
    rows, _ = drawn()
    assert rows == layers()


def test_what_patches_may_use_is_drawn_and_is_all_that_is_not_forbidden():
    forbidden = CONTRACTS["A patch has what a user's plugin has"]["forbidden_modules"]
    closed = {name.replace("coati_ext.", "") for name in forbidden}
    rooms = {name.split(".")[0] for row in layers() for name in row}
    _, dashed = drawn()
    assert dashed == rooms - closed


def test_every_room_is_in_the_diagram_and_in_the_table():
    entries = [item for item in (ROOT / "coati_ext").iterdir() if item.suffix in ("", ".py")]
    rooms = {item.stem for item in entries} - UNDRAWN
    assert {name.split(".")[0] for row in layers() for name in row} == rooms
    for entry in rooms:
        assert f"`coati_ext/{entry}/`" in CONTRIBUTING or f"`{entry}`" in CONTRIBUTING


@pytest.mark.parametrize("patch", PATCHES)
def test_every_patch_has_the_same_rooms(patch):
    folder = ROOT / "patches" / patch
    rooms = {item.stem for item in folder.iterdir()}
    assert rooms >= {"__init__", "sites", "options", "defects"}
    for item in folder.glob("*.py"):  # each replacement is found by what it replaces
        assert item.read_text(encoding="utf-8").startswith('"""'), item


def test_patches_are_independent_of_each_other_by_contract():
    listed = CONTRACTS["A patch does not know another"]["modules"]
    assert sorted(listed) == [f"patches.{name}" for name in PATCHES]


def test_no_fingerprint_is_in_code():
    files = [file for folder in ("coati_ext", "patches") for file in (ROOT / folder).rglob("*.py")]
    assert len(files) > 100
    assert [file for file in files if FINGERPRINT.search(file.read_text(encoding="utf-8"))] == []


def imported(*folders, without=()):
    """The packages that modules of these folders import, at their top or within functions."""
    found = set()
    for file in [file for folder in folders for file in (ROOT / folder).rglob("*.py")]:
        if {"standins", *without} & set(file.parts):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [item.name for item in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            found.update(name.split(".")[0] for name in names)
    # Scripts import each other.
    scripts = {file.stem for file in (ROOT / "benchmarks").glob("*.py")}
    ours = {"coati_ext", "coati_ext_plugin_mine", "helpers", "patches", "_common", *scripts}
    return found - {*sys.stdlib_module_names, "tomllib"} - ours


def declared(*extras):
    """The packages that come with coati-ext and these of its extras, as they are imported."""
    lists = [PROJECT["project"]["optional-dependencies"][extra] for extra in extras]
    wanted = [item for items in [PROJECT["project"]["dependencies"], *lists] for item in items]
    return {re.match(r"[\w-]+", item).group().replace("-", "") for item in wanted}


@pytest.mark.once(why="the imports are the same on every stack")
def test_what_is_imported_is_declared_or_the_users_own():
    drawing = ["bench", "demo", "show"]
    assert imported("coati_ext", "patches", without=[*drawing, "curves"]) <= declared() | USERS_OWN
    drawn = imported(*(f"coati_ext/{name}" for name in drawing))
    assert drawn <= declared("demo") | USERS_OWN
    assert imported("coati_ext/curves") <= declared("plot")
    tested = declared("demo", "bench", "test") | USERS_OWN | STACK
    assert imported("tests", "examples") <= tested
    assert imported("benchmarks") <= tested | PEERS


def test_the_rooms_of_the_tests_are_those_of_the_code():
    rooms = {item.name for item in (ROOT / "tests").iterdir() if item.is_dir()}
    rooms -= {"__pycache__", "helpers", "cuda"}
    known = {item.stem for item in [*ROOT.iterdir(), *(ROOT / "coati_ext").iterdir()]}
    assert rooms <= known
    tested = {item.name for item in (ROOT / "tests" / "patches").iterdir() if item.is_dir()}
    assert tested - {"__pycache__"} == set(PATCHES)


def test_contributing_names_every_session():
    sessions = re.findall(
        r"^@nox.session.*\ndef (\w+)\(session",
        (ROOT / "noxfile.py").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert len(sessions) >= 6
    for name in sessions:
        assert f"| `{name}` |" in CONTRIBUTING or f"nox -s {name}" in CONTRIBUTING


def test_paths_named_in_contributing_exist():
    for name in re.findall(
        r"`((?:coati_ext|patches|tests|docs|maintenance)/[\w/.]*)`", CONTRIBUTING
    ):
        if "NAME" not in name and not name.startswith("coati_ext/patches"):  # in the wheel
            assert Path(ROOT, name).exists(), name
