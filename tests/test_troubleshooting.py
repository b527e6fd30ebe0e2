"""``docs/troubleshooting.md`` has every message of the package, and none that it no longer has."""

from __future__ import annotations

import re

import pytest

from helpers import ROOT
from helpers.messages import EXEMPT, GAP, LEAST, Source, fragments, longest

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")

pytestmark = pytest.mark.once(why="the source is the same on every stack")


def told():
    """The messages of the page: the code in its lists, with gaps for names in braces."""
    items = re.findall(r"^- (.*\n(?:  .*\n)*)", PAGE, flags=re.MULTILINE)
    for item in items:
        text = re.fullmatch(r"(`+) ?(.*?) ?\1", " ".join(item.split()))
        assert text, f"more or less than one message: {item}"
        yield re.sub(r"\{[\w ,]+\}", GAP, text.group(2))


@pytest.fixture(scope="module")
def source():
    return Source()


def test_every_message_is_in_the_page(source):
    messages = source.messages()
    page = GAP.join(piece for text in told() for piece in fragments(text))
    missing = [(file, text) for text, file in messages.items() if longest(text) not in page]
    assert missing == []
    assert len(messages) > 300


def test_the_page_has_no_message_that_is_gone(source):
    known = [words for words in source.words() if " " in words and len(words) >= LEAST // 2]

    def rest(piece):
        """What is left of a piece of the page without the texts of the source."""
        if any(piece in words for words in known):
            return ""
        for words in known:
            piece = piece.replace(words, GAP)
        return longest(piece)

    gone = [rest(piece) for text in told() for piece in fragments(text)]
    assert [piece for piece in gone if len(piece) >= LEAST and " " in piece] == []


def test_the_page_tells_every_message_once():
    texts = list(told())
    assert sorted(texts) == sorted(set(texts))


def test_what_is_exempt_exists():
    for place in EXEMPT:
        assert (ROOT / place).exists()
