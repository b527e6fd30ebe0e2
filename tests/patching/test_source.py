"""Reading upstream's source: which text a function has, and which file a module."""

from __future__ import annotations

import dataclasses
import json
import sys
import types

import pytest

from coati_ext.errors import CoatiNotFoundError
from coati_ext.patching.source import Coati, dotted_file, find_coati, function_in

TWICE = '''
import functools


class Model:
    def forward(self):
        return 1


class Model:
    # The one that counts.
    @functools.lru_cache(
        maxsize=None
    )
    def forward(self):
        """Score."""
        return 2

    def last(self):
        return 3
'''


@pytest.fixture
def twice(tmp_path):
    (tmp_path / "coati").mkdir()
    file = tmp_path / "coati" / "twice.py"
    file.write_text(TWICE)
    return file


def test_of_two_classes_of_one_name_the_last_counts_as_in_python(twice):
    assert "return 2" in function_in(twice, "Model.forward").text
    assert Coati(twice.parent, "G1").function("coati.twice", "Model.last") is not None


def test_the_text_of_a_function_runs_from_its_decorators_to_its_last_line(twice):
    text = function_in(twice, "Model.forward").text
    assert text.startswith("    @functools.lru_cache(\n")
    assert text.endswith("        return 2\n")


def test_a_function_on_the_first_line_has_a_text(tmp_path):
    file = tmp_path / "first.py"
    file.write_text("def f():\n    return 1\n")
    assert function_in(file, "f").text == "def f():\n    return 1\n"


def test_a_module_without_a_file_has_none(tmp_path, monkeypatch):
    (tmp_path / "folder_without_init").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "made_by_hand", types.ModuleType("made_by_hand"))
    assert dotted_file("folder_without_init") is None
    assert dotted_file("no_such_module") is None
    assert dotted_file("no_such_package.module") is None
    assert dotted_file("made_by_hand") is None


@pytest.mark.parametrize("error", [ImportError, ValueError])
def test_a_broken_import_hook_finds_no_coati(monkeypatch, error):
    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name in ("coati", "chatgpt"):
                raise error(name)

    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    with pytest.raises(CoatiNotFoundError, match="coati is not importable"):
        find_coati()


def test_a_function_of_another_package_is_looked_for_in_that_package(tmp_path):
    function = Coati(tmp_path, "G1").function("json.decoder", "JSONDecoder.decode")
    assert function is not None
    assert function.file == json.decoder.__file__


def test_what_was_read_of_upstream_cannot_be_changed(tmp_path):
    file = tmp_path / "first.py"
    file.write_text("def f():\n    return 1\n")
    for record, name in ((Coati(tmp_path, "G1"), "generation"), (function_in(file, "f"), "file")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(record, name, "another")
