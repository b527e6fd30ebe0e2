"""Hooks of MkDocs: what pages and docstrings say elsewhere, but not on the site.

A link to a file outside ``docs/`` works where the repository is read. The site has ``docs/`` alone,
so there the link becomes its text. The roles of reStructuredText, which editors know, are left out.
"""

from __future__ import annotations

import re
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./[^)]*\)")
_ROLE = re.compile(r":(?:attr|class|func|meth|mod):(?=<code>)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the links that leave the folder by their text."""
    return _OUTSIDE.sub(r"\1", markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Leave out the roles before code."""
    return _ROLE.sub("", html)
