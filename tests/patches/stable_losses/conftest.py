"""The losses as upstream has them, beside the patched ones."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Iterator

import pytest

import coati_ext
from helpers.upstreams import Upstream, forget_coati


@pytest.fixture
def before(upstream: Upstream) -> Iterator[ModuleType]:
    """``coati.models.loss`` unpatched; what a test imports from coati is another one, patched."""
    unpatched = import_module("coati.models.loss")
    forget_coati()
    with coati_ext.applied():
        assert import_module("coati.models.loss") is not unpatched
        assert unpatched.PolicyLoss.forward.__module__.startswith("coati.")
        yield unpatched
