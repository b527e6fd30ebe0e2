"""Under the flag no module of coati comes unpatched, however it is found and loaded."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import sys
import types
import zipfile
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

import coati_ext
from coati_ext.errors import CoatiNotFoundError
from coati_ext.launch import imports, watch
from coati_ext.patching.source import find_coati
from helpers.upstreams import forget_coati

OURS = "coati_ext.patches.eos_pooling.reward_model"
pytestmark = pytest.mark.enough("G1", "G4", why="how modules come is the same for all")


@pytest.fixture
def armed(upstream, monkeypatch):
    """As the start-up file leaves a process, before coati is imported."""
    monkeypatch.setenv("COATI_EXT", "1")
    watch.activate()
    assert imports.guard() is not None
    return upstream


class Before:
    """A finder that typeguard or jaxtyping puts in front of all others, which finds coati."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        return PathFinder.find_spec(name, path) if name.split(".")[0] == "coati" else None


def finder(upstream, monkeypatch):
    monkeypatch.setattr(sys, "meta_path", [Before, *sys.meta_path])


def made_by_hand(upstream, monkeypatch):
    module = types.ModuleType("coati")
    module.__path__ = [str(upstream.package)]
    sys.modules["coati"] = module


def loaded_by_hand(upstream, monkeypatch):
    spec = importlib.util.spec_from_file_location("coati", str(upstream.package / "__init__.py"))
    sys.modules["coati"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["coati"])


def lazily(upstream, monkeypatch):
    spec = importlib.util.find_spec("coati")
    spec.loader = importlib.util.LazyLoader(spec.loader)
    sys.modules["coati"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["coati"])


def plainly(upstream, monkeypatch):
    pass


@pytest.mark.parametrize("come", [plainly, finder, made_by_hand, loaded_by_hand, lazily])
def test_however_coati_comes_it_is_patched(armed, monkeypatch, come):
    come(armed, monkeypatch)
    import coati.models

    assert coati.models.RewardModel.forward.__module__ == OURS
    assert type(coati.models.__spec__.loader).__name__ == "SourceFileLoader"
    assert coati.models.__loader__ is coati.models.__spec__.loader


def test_a_target_that_comes_first_is_patched(armed, monkeypatch):
    """Its import is what enables the patches, and it is there already, empty, by then."""
    made_by_hand(armed, monkeypatch)
    models = sys.modules["coati.models"] = types.ModuleType("coati.models")
    models.__path__ = [str(armed.package / "models")]
    loss = importlib.import_module("coati.models.loss")
    assert loss.LogExpLoss.forward.__module__.startswith("coati_ext.")


def in_a_folder(upstream, folder):
    """A copy of coati that has no ``__init__.py``."""
    shutil.copytree(str(upstream.package), str(folder / "coati"))
    (folder / "coati" / "__init__.py").unlink()
    return folder


def in_an_archive(upstream, folder):
    file = folder / "coati.zip"
    with zipfile.ZipFile(str(file), "w") as archive:
        for source in upstream.package.rglob("*.py"):
            archive.write(str(source), str(source.relative_to(upstream.folder)))
    return file


@pytest.fixture(params=[in_a_folder, in_an_archive], ids=lambda make: make.__name__)
def unreadable(request, armed, tmp_path):
    """In the place of the coati under test, one whose source cannot be read."""
    place = str(request.param(armed, tmp_path))
    before = list(sys.path)
    others = [item for item in before if not Path(item, "coati", "__init__.py").is_file()]
    sys.path[:] = [place, *others]
    yield place
    sys.path[:] = before


def test_a_coati_that_cannot_be_read_is_refused_and_not_imported(unreadable, monkeypatch):
    told = "is no folder" if unreadable.endswith("zip") else "has no __init__.py, so it is a names"
    for names in (["coati", "coati.models"], ["coati.models", "coati.models.loss"]):
        with pytest.raises(CoatiNotFoundError, match=told):
            find_coati()
        for name in names:
            with pytest.raises(ImportError, match=told):
                importlib.import_module(name)
        sys.modules["coati"] = types.ModuleType("coati")  # and then by hand
        sys.modules["coati"].__path__ = [f"{unreadable}/coati"]
    monkeypatch.setenv("COATI_EXT", "0")
    assert importlib.import_module("coati.models").RewardModel  # it can be had unpatched
    assert coati_ext.status().patches[0].state == "off"


@pytest.mark.parametrize("flag", ["0", "", " OFF "])
def test_a_flag_that_is_taken_back_arms_nothing(armed, monkeypatch, flag):
    monkeypatch.setenv("COATI_EXT", flag)
    import coati.models

    assert coati.models.RewardModel.forward.__module__.startswith("coati.models")


def test_a_broken_coati_ext_stops_the_import_with_a_sentence(armed, monkeypatch):
    for name in ("coati_ext.switch", "pluggy"):
        with monkeypatch.context() as context:
            if name == "pluggy":
                context.delitem(sys.modules, "coati_ext.switch")
                context.delitem(sys.modules, "coati_ext.plan")
                context.delitem(sys.modules, "coati_ext.plugins")
            context.setitem(sys.modules, name, None)
            with pytest.raises(ImportError, match=f"not whole here.*{name}.*install it again"):
                importlib.import_module("coati")
    forget_coati()
