"""The known variants of each upstream function, the releases that have them, and our verdicts.

A patch declares its sites without fingerprints, and :func:`with_variants` adds them from a file
that ``nox -s upstream`` maintains. A tree is one version of upstream: a release, a commit or a
stand-in. Only this module reads and writes lists of trees such as
``v0.2.8 .. v0.3.1, v0.3.3, stand-in G1``, in which ``..`` is a range.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, Sequence, Tuple

from coati_ext.errors import InputError, UnknownNameError, nearest
from coati_ext.patching.patch import GENERATIONS, Site

FITS, RIGHT, UNREVIEWED = VERDICTS = ("fits", "right", "unreviewed")
STANDINS = tuple(f"stand-in {generation}" for generation in GENERATIONS)
_TO = " .. "
_FINGERPRINT = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{8})*")
_COMMIT = re.compile(r"[0-9a-f]{7,40}")


@dataclass(frozen=True)
class Trees:
    """The trees of upstream by generation, oldest first; reads and writes lists of them."""

    generations: Mapping[str, Tuple[str, ...]]

    @cached_property
    def names(self) -> Tuple[str, ...]:
        """All trees in order; the stand-ins, one per generation, come last."""
        real = [name for item in GENERATIONS for name in self.generations.get(item, ())]
        return (*real, *STANDINS)

    def generation(self, name: str) -> str:
        """The generation of a tree.

        Raises:
            UnknownNameError: there is no such tree.
        """
        if name in STANDINS:
            return name.split()[-1]
        for generation, names in self.generations.items():
            if name in names:
                return generation
        expected = f"expected one of {', '.join(self.names)}{nearest(name, self.names)}"
        raise UnknownNameError(f"no tree is called {name!r}: {expected}")

    def of(self, generations: Iterable[str]) -> Tuple[str, ...]:
        """The trees of these generations, in order."""
        wanted = set(generations)
        return tuple(name for name in self.names if self.generation(name) in wanted)

    def parse(self, text: str) -> Tuple[str, ...]:
        """The trees that a text lists.

        Raises:
            UnknownNameError: a tree does not exist, or a range goes backwards.
        """
        found: List[str] = []
        for part in text.split(", "):
            first, to, last = part.partition(_TO)
            if to and first in STANDINS:
                last = f"stand-in {last}"
            for name in (first, last) if to else (first,):
                self.generation(name)
            order = self.order(first)
            if not to:
                found.append(first)
            elif last in order and order.index(first) < order.index(last):
                found += order[order.index(first) : order.index(last) + 1]
            else:
                raise UnknownNameError(f"{part!r} is no run over {', '.join(order)}")
        return tuple(found)

    def text(self, names: Iterable[str]) -> str:
        """The text that lists these trees, the inverse of :meth:`parse`.

        A commit is left out if a release of its generation is listed.
        """
        given = set(names)
        releases = [name for name in given if not is_commit(name)]
        said = {self.generation(name) for name in releases if name not in STANDINS}
        given -= {name for name in given if is_commit(name) and self.generation(name) in said}
        parts: List[List[str]] = []
        before = ""
        for name in (name for name in self.names if name in given):
            order = self.order(name)
            if before in order and order.index(before) + 1 == order.index(name):
                parts[-1].append(name)
            else:
                parts.append([name])
            before = name
        return ", ".join(_run(part) for part in parts)

    def order(self, name: str) -> Tuple[str, ...]:
        """The sequence in which a range that contains this tree counts; a commit is in no range."""
        if name in STANDINS:
            return STANDINS
        if is_commit(name):
            return (name,)
        return tuple(item for item in self.names if item not in STANDINS and not is_commit(item))


@dataclass(frozen=True)
class Variant:
    """One version of an upstream function."""

    fingerprint: str
    trees: Tuple[str, ...]
    """The trees that contain this version."""
    verdicts: Mapping[str, str]
    """By patch: ``fits`` (will be patched), ``right`` (needs no change) or ``unreviewed``."""


@dataclass(frozen=True)
class Variants:
    """The content of a file of variants."""

    trees: Trees
    targets: Mapping[str, Tuple[Variant, ...]]


def with_variants(sites: Sequence[Site], file: Path, patch: str) -> Tuple[Site, ...]:
    """The sites of a patch, with ``fits`` and ``right`` filled in from a file of variants.

    Sites that need no fingerprint (``takes``, or mode ``extend``) are left alone.

    Raises:
        InputError: the file cannot be read, or its format is wrong.
        UnknownNameError: a verdict or tree in it is unknown, or it lacks a target.
    """
    known = read_variants(file)
    return tuple(_filled(site, file, known, patch) if is_by_code(site) else site for site in sites)


def is_by_code(site: Site) -> bool:
    """Whether a site is checked by fingerprint, not by signature or as an inherited method."""
    return not site.takes and site.mode != "extend"


def is_commit(name: str) -> bool:
    """Whether a tree's name is a commit's hash."""
    return _COMMIT.fullmatch(name) is not None


def read_variants(file: Path) -> Variants:
    """Read a file of variants; cached until the file changes.

    Raises:
        InputError: the file cannot be read, or its format is wrong.
        UnknownNameError: a verdict or tree in it is unknown.
    """
    try:
        return _read(file, file.stat().st_mtime_ns)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {file}: {error}") from error


@lru_cache(maxsize=8)
def _read(file: Path, modified_ns: int) -> Variants:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        content: Dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{file} is not TOML: {error}") from error
    trees = _trees(file, content.pop("trees", {}))
    targets = {name: _variants(file, name, tables, trees) for name, tables in content.items()}
    return Variants(trees, targets)


def _trees(file: Path, table: Any) -> Trees:
    if not isinstance(table, dict):
        raise InputError(f"{file}: trees = {table!r}: wants a table of lists, by generation")
    for generation, names in table.items():
        if generation not in GENERATIONS:
            hint = nearest(generation, GENERATIONS)
            expected = f"expected one of {', '.join(GENERATIONS)}{hint}"
            raise UnknownNameError(f"{file}: [trees] {generation} = ...: {expected}")
        if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise InputError(f"{file}: [trees] {generation} = {names!r}: wants a list of names")
    return Trees({generation: tuple(names) for generation, names in table.items()})


def _variants(file: Path, target: str, tables: Any, trees: Trees) -> Tuple[Variant, ...]:
    if not (isinstance(tables, list) and all(isinstance(table, dict) for table in tables)):
        raise InputError(f'{file}: {target} is no list of variants, [["{target}"]]')
    found = tuple(_variant(f"{file}: {target}", table, trees) for table in tables)
    named = [name for variant in found for name in variant.trees]
    for name in named:
        if named.count(name) > 1:
            raise InputError(f"{file}: {target}: {name} is named twice, and has but one code")
    return found


def _variant(place: str, table: Mapping[str, Any], trees: Trees) -> Variant:
    texts = [table.get(key) for key in ("releases", "fingerprint")]
    if not all(isinstance(text, str) for text in texts):
        raise InputError(f"{place}: a variant needs releases and a fingerprint, both texts")
    releases, fingerprint = map(str, texts)
    if not _FINGERPRINT.fullmatch(fingerprint):
        raise InputError(f"{place}: fingerprint = {fingerprint!r}: wants 8 hex digits a part")
    verdicts = {key: table[key] for key in table if key not in ("releases", "fingerprint")}
    for patch, word in verdicts.items():
        if word not in VERDICTS:
            expected = f"expected one of {', '.join(VERDICTS)}{nearest(str(word), VERDICTS)}"
            raise UnknownNameError(f"{place}: {patch} = {word!r}: {expected}")
    try:
        return Variant(fingerprint, trees.parse(releases), verdicts)
    except UnknownNameError as error:
        raise UnknownNameError(f"{place}: releases = {releases!r}: {error}") from None


def _filled(site: Site, file: Path, known: Variants, patch: str) -> Site:
    if site.target not in known.targets:
        raise UnknownNameError(
            f"{file} has no variant of {site.target}, which patch {patch} changes: record it with "
            f"`nox -s upstream`{nearest(site.target, known.targets)}"
        )
    here = known.trees.of(site.generations)
    found: Dict[str, Dict[str, str]] = {FITS: {}, RIGHT: {}}
    for variant in known.targets[site.target]:
        names = [name for name in variant.trees if name in here]
        word = variant.verdicts.get(patch)
        if names and word in found:
            found[word][_label(names, known.trees, word)] = variant.fingerprint
    return dataclasses.replace(site, fits=found[FITS], right=found[RIGHT])


def _label(names: Sequence[str], trees: Trees, word: str) -> str:
    """The label of a variant in a plan: its releases, or its stand-ins if no release has it.

    A variant that is right up to the newest release is labelled by its first (right *since* it).
    """
    real = [name for name in names if name not in STANDINS] or list(names)
    text = trees.text(real)
    first, to, last = text.partition(_TO)
    to_newest = to and ", " not in text and trees.order(first)[-1].split()[-1] == last
    return first if word == RIGHT and to_newest else text


def _run(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    return f"{names[0]}{_TO}{names[-1].split()[-1]}"
