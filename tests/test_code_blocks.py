"""The code in the documents runs: Python is executed, settings are checked, commands are parsed.

A block that cannot run has `<!--- skip: next "REASON" -->` above it. Each page is one namespace, in
which its blocks run one after another. A block that begins with `# NAME.py` is that file, which is
there for the blocks of all pages.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from unittest import SkipTest

import pytest
from sybil import Document, Region
from sybil.parsers.markdown import SkipParser
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

import coati_ext
from coati_ext._toml import parse_toml
from coati_ext.cli import _parser
from coati_ext.plan import make_plan
from helpers import ROOT

NAMES = ("*.md", "docs/**/*.md", "benchmarks/*.md", "examples/*.md")
PAGES = sorted({file for name in NAMES for file in ROOT.glob(name)} - {ROOT / "CHANGELOG.md"})
BLOCK = re.DOTALL | re.MULTILINE
DRAWN = ("mermaid", "text")
"""Languages of blocks that are no code."""

pytestmark = pytest.mark.once(why="what the blocks call is tested on every stack")


def blocks(document):
    """Every fenced block, with its language."""
    lex = RawFencedCodeBlockLexer(re.compile(r"[ \t]*(?P<language>\S*)[^\n]*\n"))
    for block in lex(document):
        yield Region(block.start, block.end, block.lexemes, evaluate)


def evaluate(example):
    """Run a block, according to its language."""
    language, text = example.parsed["language"], str(example.parsed["source"])
    if language == "python":
        run(example, text)
    elif language == "toml":
        check_settings(text)
    elif language == "json":
        json.loads(text)
    elif language in ("", "bash", "console", "sh"):
        for command in commands(text):
            _parser().parse_args(command)
    else:
        assert language in DRAWN, f"nothing runs {language}"


def run(example, text):
    """Execute Python; a plugin is loaded as one."""
    named = re.match(r"# (\w+\.py)\n", text)
    if named and "hookimpl" in text:
        plan = make_plan({"plugins": [f"./{named.group(1)}"]})
        assert [plugin.error for plugin in plan.registry.broken] == []
        return
    # With the line numbers of the page in tracebacks.
    lines = "\n" * (example.line + example.parsed["source"].line_offset)
    exec(compile(lines + text, example.path, "exec"), example.namespace)


def check_settings(text):
    """Settings must be known, and of the right type; other tables of a project are not ours."""
    project = {"project", "tool"} & set(parse_toml(text))
    file = Path("pyproject.toml" if project else "coati-ext.toml")
    file.write_text(text, encoding="utf-8")
    make_plan(file)
    file.unlink()  # or the blocks after it would have these settings


def commands(text):
    """The arguments of each `coati-ext` command in a block, without pipes and variables."""
    text = text.replace("\\\n", " ")
    prompted = re.findall(r"^\$ (.*)$", text, flags=re.MULTILINE)
    for line in prompted or text.splitlines():
        for part in re.split(r"&&|\|", line):
            found = re.match(
                r"\s*(?:\w+=\S* )*(?:coati-ext|python -m coati_ext) (?=[\w-])(.*)", part
            )
            if found:
                words = shlex.split(found.group(1), comments=True)
                yield words[: -1 if words[-1] == "..." else None]


@pytest.fixture
def files():
    """The Python files of all pages, in the working directory."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for code, name in re.findall(r"^```python\n(# (\w+\.py)\n.*?)^```", text, BLOCK):
            Path(name).write_text(code, encoding="utf-8")


@pytest.fixture
def ray(monkeypatch):
    """Stands in for Ray, since no block can bring a cluster to connect to."""
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=lambda **given: None))


@pytest.mark.enough("G4", why="a page shows one coati")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_code_runs(upstream, files, ray, page):
    document = Document.parse(str(page), blocks, SkipParser())
    try:
        for example in document.examples():
            with suppress(SkipTest):
                example.evaluate()
    finally:
        coati_ext.disable()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_is_skipped_has_a_reason(page):
    for directive in re.findall(r"<!--+ *skip:.*", page.read_text(encoding="utf-8")):
        assert re.search(r'skip: (next|start) "[^"]+" -->|skip: end -->', directive)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_and_variables_in_the_text_exist(newest, files, page, monkeypatch):
    text = re.sub(r"^- `[^`]+`$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    usage = _parser().format_help()
    for command in re.findall(r"`coati-ext ([a-z]+)", text):
        assert f"\n    {command} " in usage
    for name, value in re.findall(r"\b(COATI_EXT(?:_SET)?)=([\w.,=/+-]+\w)", text):
        if not re.search(r"\.\.\.|\b[A-Z]+\b", value):
            with monkeypatch.context() as context:
                context.setenv(name, value)
                make_plan()
