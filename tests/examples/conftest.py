"""Run an example as its README says, and hear what it has measured."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec

import pytest

from helpers import ROOT, script


@pytest.fixture
def told(upstream, warm_children, monkeypatch, capsys, tmp_path):
    """What an example finds on the coati under test, by run, with small sizes."""

    def told(name, *arguments):
        folder, picture = ROOT / "examples" / name, tmp_path / "picture.png"
        monkeypatch.syspath_prepend(str(folder))  # as Python does for a script
        given = ["--coati", str(upstream.folder), "--quick", "--json", "--picture", str(picture)]
        monkeypatch.setattr(sys, "argv", ["run.py", *given, *arguments])
        with script(folder / "run.py") as example:
            example.main()
        if find_spec("matplotlib"):
            assert picture.read_bytes().startswith(b"\x89PNG")
        return json.loads(capsys.readouterr().out)["found"]

    return told
