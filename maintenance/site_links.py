"""A hook of MkDocs: a link to a file outside ``docs/`` becomes its text.

Such links work where the repository is read. The site has ``docs/`` alone, so there the text, which
is the file's path or says which file it is, stands by itself.
"""

from __future__ import annotations

import re
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./[^)]*\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Take the links that leave the folder off a page."""
    return _OUTSIDE.sub(r"\1", markdown)
