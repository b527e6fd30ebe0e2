"""Settings from whoever: every source, filled at random, is taken or told, and never worse."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import sys
from pathlib import Path
from unittest import mock

import hypothesis
import pytest
from hypothesis import strategies as st

import coati_ext
from coati_ext import active
from coati_ext.errors import CoatiExtError, ConfigError
from coati_ext.plugins import CHOICES, load
from coati_ext.settings import FROZEN, collect, freeze, resolve

pytestmark = [
    pytest.mark.attack,
    # With Python 3.8 the interpreter has once died under hypothesis here, nobody knows why.
    pytest.mark.once("text is read alike on every stack; test_settings runs on both"),
]

WORDS = st.sampled_from(
    [
        *("eos_pooling", "rollout", "left_padding", "provenance", "eos_poling", "rolout", "use"),
        *("policy", "plugins", "rank_check", "pooling", "lam", "gamma", "enabled", "on_mismatch"),
        *("pool_reward", "strict", "eos", "COATI_EXT", "only", "tool", "true", "nan", "inf"),
        *("x.y", "./nowhere.py"),
    ]
)
NUMBERS = st.one_of(
    st.floats(),
    st.integers(),
    st.integers(62, 200_000).map(lambda bits: 2**bits),  # with more digits than Python will show
)
NAMES = WORDS | st.text(max_size=12) | st.sampled_from(["a" * 6000, "\x1b[31m\n", "\ud800"])


class Odd:
    """What a notebook may put into a mapping."""

    def __repr__(self):
        raise OSError("not today")

    def __eq__(self, other):
        raise TypeError("compare me to nothing")

    __hash__ = None


ANY = st.recursive(
    st.one_of(NAMES, NUMBERS, st.none(), st.booleans(), st.binary(max_size=4), st.builds(Odd)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner),
        st.dictionaries(st.one_of(NAMES, st.integers(), st.none()), inner, max_size=3),
    ),
    max_leaves=6,
)
SECTION = st.dictionaries(st.one_of(NAMES, st.integers()), ANY, max_size=4)
MAPPINGS = st.dictionaries(
    st.one_of(NAMES, st.integers(), st.none(), st.tuples(st.integers())), ANY | SECTION, max_size=4
)

# Text that is TOML now and then, and more often nearly.
KEYS = st.one_of(WORDS, st.sampled_from(['""', '"a b"', "'", "1", "a.b.c", "ä", "tool.coati-ext"]))
VALUES = st.recursive(
    st.one_of(
        *[
            WORDS,
            WORDS.map(json.dumps),
            NUMBERS.map(lambda number: f"{number:#x}" if isinstance(number, int) else str(number)),
        ],
        st.sampled_from(
            ["", "1e400", "0.5", "1979-05-27", "{}", '"""', "'x'", "1" * 5000, "[" * 5000, "True"]
        ),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
        st.lists(st.tuples(KEYS, inner), max_size=3).map(
            lambda items: f"{{{', '.join(f'{key} = {value}' for key, value in items)}}}"
        ),
    ),
    max_leaves=4,
)
LINES = st.one_of(
    KEYS.map(lambda key: f"[{key}]"),
    KEYS.map(lambda key: f"[[{key}]]"),
    st.tuples(KEYS, VALUES).map(" = ".join),
    st.tuples(KEYS, KEYS, VALUES).map(lambda parts: f"{parts[0]}.{parts[1]} = {parts[2]}"),
    st.text(max_size=8),
)
TEXTS = st.lists(LINES, max_size=6).map("\n".join)
FILES = st.one_of(
    TEXTS.map(lambda text: text.encode("utf-8", "surrogatepass")),
    TEXTS.map(lambda text: text.encode("utf-8-sig", "surrogatepass")),
    TEXTS.map(lambda text: text.encode("utf-16", "surrogatepass")),
    st.binary(max_size=20),
)


def can_be_exported(text):
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


EXPORTED = st.one_of(
    st.lists(st.tuples(NAMES, NAMES).map("=".join), max_size=4).map(",".join),
    st.text(max_size=12),
    st.binary(max_size=12).map(os.fsdecode),
).filter(can_be_exported)


def encoded(content):
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


ROWS = st.one_of(
    ANY,
    st.lists(st.lists(ANY, max_size=5), max_size=3),
    st.lists(st.tuples(NAMES, NAMES, ANY, NAMES), max_size=3),
)


def in_json(content):
    try:
        return json.dumps(content, default=lambda odd: None, skipkeys=True).encode()
    except ValueError:  # a number with too many digits
        return b"[[]]"


JSON = st.one_of(
    ROWS.map(in_json),
    st.sampled_from([b"[" * 50_000, b'[["","lam",' + b"9" * 5000 + b',"x"]]', b"NaN", b"\xff\xfe"]),
)
FROZENS = st.one_of(JSON.map(encoded), EXPORTED)

REGISTRY = load([])
OFFERS = {hook: [item.name for item in REGISTRY.implementations(hook)] for hook in CHOICES}


def read(config=None):
    """Read and check every layer, and hand them on, as `coati-ext run` does."""
    try:
        layers = collect(config)
        resolve(layers, REGISTRY.patches, REGISTRY.options, OFFERS, "G4")
        freeze(layers)
    except ConfigError as error:
        if max(map(len, str(error).split("\n"))) > 1500:
            raise AssertionError("no one reads that") from error
        raise


def attack(draw, count, attempt):
    """Let each of so many examples be attempted: it succeeds, or the settings are told off."""
    tried = []

    @hypothesis.settings(max_examples=count, database=None)
    @hypothesis.given(draw)
    def examples(drawn):
        tried.append(True)
        with contextlib.suppress(ConfigError):
            attempt(drawn)

    examples()
    return len(tried)


def as_mapping(mapping):
    read(mapping)


def as_file(content):
    Path("coati-ext.toml").write_bytes(content)
    read()


def as_project(content):
    Path("pyproject.toml").write_bytes(content)
    read()


def as_variable(name):
    def attempt(text):
        with mock.patch.dict(os.environ, {name: text}):
            read()

    return attempt


SOURCES = {
    "a mapping": (MAPPINGS, as_mapping),
    "coati-ext.toml": (FILES, as_file),
    "pyproject.toml": (FILES.map(lambda content: b"[tool.coati-ext]\n" + content), as_project),
    "another's pyproject.toml": (FILES, as_project),
    **{
        name: (EXPORTED, as_variable(name))
        for name in ("COATI_EXT", "COATI_EXT_SET", "COATI_EXT_CONFIG")
    },
    FROZEN: (FROZENS, as_variable(FROZEN)),
}


@pytest.mark.parametrize("source", SOURCES)
def test_whatever_a_source_says_it_is_taken_or_told(source, full, tally):
    draw, attempt = SOURCES[source]
    tally("settings", attack(draw, 3000 if full else 100, attempt), 0)


def test_settings_that_are_told_off_leave_nothing_behind(newest, full, tally):
    def state():
        return (
            dict(os.environ),
            list(sys.path),
            list(sys.meta_path),
            {name for name in sys.modules if not name.startswith("coati_ext.")},
            (dict(active._choices), dict(active._options), dict(active._observers)),
            coati_ext.status(),
        )

    def attempt(mapping):
        before = state()
        try:
            coati_ext.enable(mapping)
        except CoatiExtError:
            assert state() == before
            raise
        coati_ext.disable()

    coati_ext.status()  # what it imports is imported now
    # Names of plugins would be imported, whatever they are.
    draw = MAPPINGS.filter(lambda mapping: "plugins" not in mapping)
    tally("settings, then the state", attack(draw, 500 if full else 10, attempt), 0)


@pytest.mark.parametrize("source", ["a mapping", "coati-ext.toml", "pyproject.toml", "environment"])
def test_thousands_of_unknown_keys_come_to_an_end(source, monkeypatch):
    keys = [f"eos_poolin{number}" for number in range(40_000)]
    lines = "".join(f"{key} = 1\n" for key in keys)
    config = None
    if source == "a mapping":
        config = dict.fromkeys(keys, 1)
    elif source == "environment":
        monkeypatch.setenv("COATI_EXT_SET", ",".join(f"{key}=1" for key in keys[:8000]))
    elif source == "pyproject.toml":
        Path(source).write_text(f"[tool.coati-ext]\n{lines}")
    else:
        Path(source).write_text(lines)
    with pytest.raises(ConfigError) as error:
        read(config)
    told = str(error.value)
    if source == "coati-ext.toml":
        assert "cannot read coati-ext.toml: it has more than 65536 bytes" in told
    else:
        assert "50 problems and perhaps more" in told
        assert "eos_poolin0: no such patch or setting; did you mean eos_pooling?" in told
    assert len(told) < 10_000
