"""Upstream as data: which variants of a function there are, where, and what was said of each.

A patch declares its sites without code of upstream's, and :func:`with_variants` adds the
fingerprints from a file that ``nox -s upstream`` keeps. The text that names a variant's trees is
read and written here alone: runs over their order, ``v0.2.8 .. v0.3.1, v0.3.3, stand-in G1``.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, Sequence, Tuple, TypeVar, Union

from coati_ext._toml import parse_toml
from coati_ext.errors import InputError, UnknownNameError, nearest
from coati_ext.patching.patch import GENERATIONS, Reliance, Site

FITS, RIGHT, UNREVIEWED = VERDICTS = ("fits", "right", "unreviewed")
STANDINS = tuple(f"stand-in {generation}" for generation in GENERATIONS)
_TO = " .. "
_FINGERPRINT = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{8})*")
_COMMIT = re.compile(r"[0-9a-f]{7,40}")


@dataclass(frozen=True)
class Trees:
    """The trees of upstream by generation, oldest first, and the text that names some of them."""

    generations: Mapping[str, Tuple[str, ...]]

    @cached_property
    def names(self) -> Tuple[str, ...]:
        """Every tree in order; a stand-in for each generation comes last."""
        return tuple(self._generations)

    @cached_property
    def releases(self) -> Tuple[str, ...]:
        """The real trees but for commits."""
        return tuple(name for name in self.names if name not in STANDINS and not is_commit(name))

    @cached_property
    def _generations(self) -> Dict[str, str]:
        real = {name: item for item in GENERATIONS for name in self.generations.get(item, ())}
        return {**real, **dict(zip(STANDINS, GENERATIONS))}

    def generation(self, name: str) -> str:
        """The generation of a tree.

        Raises:
            UnknownNameError: there is no such tree.
        """
        if name not in self._generations:
            expected = f"expected one of {', '.join(self.names)}{nearest(name, self.names)}"
            raise UnknownNameError(f"no tree is called {name!r}: {expected}")
        return self._generations[name]

    def within(self, names: Iterable[str], generations: Iterable[str]) -> List[str]:
        """Those of some trees that lie in any of some generations."""
        wanted = set(generations)
        return [name for name in names if self.generation(name) in wanted]

    def parse(self, text: str) -> Tuple[str, ...]:
        """The trees that a text names.

        Raises:
            UnknownNameError: it names a tree that does not exist, or a run that goes backwards.
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
        """The one text that names some trees.

        A commit goes without saying where a release of its generation is named.
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
        """What a run that holds this tree goes over; a commit is in none."""
        if name in STANDINS:
            return STANDINS
        if is_commit(name):
            return (name,)
        return self.releases


@dataclass(frozen=True)
class Variant:
    """One code that a function of upstream's has."""

    fingerprint: str
    trees: Tuple[str, ...]
    """The trees that have it."""
    verdicts: Mapping[str, str]
    """What was said of it, by patch: it fits, it is right already, or nobody has looked."""


@dataclass(frozen=True)
class Variants:
    """What a file says of upstream."""

    trees: Trees
    targets: Mapping[str, Tuple[Variant, ...]]


_Known = TypeVar("_Known", Site, Reliance)


def with_variants(sites: Sequence[_Known], file: Path, patch: str) -> Tuple[_Known, ...]:
    """The sites or reliances of a patch, with their fingerprints from a file of variants.

    Sites that need no fingerprint (``takes``, or mode ``extend``) are left alone.

    Raises:
        InputError: the file cannot be read, or lacks something.
        UnknownNameError: it says a word or names a tree that does not exist, or lacks a target.
    """
    known = read_variants(file)
    return tuple(_filled(site, file, known, patch) if is_by_code(site) else site for site in sites)


def is_by_code(site: Union[Site, Reliance]) -> bool:
    """Whether a site is for particular code, rather than for a signature or a missing method."""
    return isinstance(site, Reliance) or (not site.takes and site.mode != "extend")


def is_commit(name: str) -> bool:
    """Whether a tree's name is a commit's hash."""
    return _COMMIT.fullmatch(name) is not None


def read_variants(file: Path) -> Variants:
    """Read a file of variants, once for each version of it.

    Raises:
        InputError: the file cannot be read, or lacks something.
        UnknownNameError: it says a word or names a tree that does not exist.
    """
    try:
        return _read(file, file.stat().st_mtime_ns)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {file}: {error}") from error


@lru_cache(maxsize=8)
def _read(file: Path, modified_ns: int) -> Variants:
    text = file.read_text(encoding="utf-8")
    try:
        content = parse_toml(text)
    except ValueError as error:
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


def _filled(site: _Known, file: Path, known: Variants, patch: str) -> _Known:
    if site.target not in known.targets:
        raise UnknownNameError(
            f"{file} has no variant of {site.target}, which patch {patch} needs: record it with "
            f"`nox -s upstream`{nearest(site.target, known.targets)}"
        )
    found: Dict[str, Dict[str, str]] = {FITS: {}, RIGHT: {}}
    for variant in known.targets[site.target]:
        names = known.trees.within(variant.trees, site.generations)
        word = variant.verdicts.get(patch)
        if names and word in found:
            found[word][_label(names, known.trees, word)] = variant.fingerprint
    if isinstance(site, Reliance):  # what is relied on cannot be right already
        return dataclasses.replace(site, fits=found[FITS])
    return dataclasses.replace(site, fits=found[FITS], right=found[RIGHT])


def _label(names: Sequence[str], trees: Trees, word: str) -> str:
    """What a plan calls a variant: its releases, or the stand-ins where no release has it.

    What is right up to the newest is right *since* the first.
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
