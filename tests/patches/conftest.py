"""Fixtures of the patches' tests, and not of all: asking for the families loads transformers."""

from __future__ import annotations

import pytest

from coati_ext.testing import families


@pytest.fixture(params=families())
def family(request: pytest.FixtureRequest) -> str:
    """Each family of models that the installed transformers has."""
    return request.param
