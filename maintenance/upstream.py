"""Record which variants some trees of upstream have of the functions that patches need.

    nox -s upstream -- v0.5.2=PATH HEAD=PATH ...

PATH holds ``coati/`` or is it. Known code is confirmed. Unknown code joins
``patches/upstream.toml`` as ``unreviewed``, which no patch accepts, and its difference is shown; a
person then edits that word. The stand-ins are always among the trees.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import json
import pkgutil
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Sequence, Set, Tuple, Union

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from coati_ext.errors import CoatiExtError, CoatiNotFoundError, InputError  # noqa: E402
from coati_ext.patches.upstream import UPSTREAM  # noqa: E402
from coati_ext.patching.fingerprint import changed_statements, likeness  # noqa: E402
from coati_ext.patching.patch import GENERATIONS, Reliance, Site  # noqa: E402
from coati_ext.patching.source import Coati, Function, generation_of  # noqa: E402
from coati_ext.patching.variants import (  # noqa: E402
    FITS,
    RIGHT,
    STANDINS,
    UNREVIEWED,
    Trees,
    Variant,
    Variants,
    is_by_code,
    read_variants,
)
from coati_ext.testing.standin import standin  # noqa: E402

HEADER = """\
# The variants of every upstream function that a patch of ours changes or relies on, by target.
#
# Written by `nox -s upstream -- NAME=PATH ...` (maintenance/upstream.py): a new tree's known code
# is confirmed, its unknown code is added. Only the words are edited by hand. Of a variant they say
#   fits        the patch was written for this code, or with it
#   right       this code needs no change
#   unreviewed  nobody has looked: the patch refuses it, or warns where it only relies on it
# `releases` are runs over the order of [trees]. A commit is named only where no release of its
# generation has the code; the stand-ins are those of coati_ext/testing/standins.
"""
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")
_VERSION = re.compile(r"v?\d+(\.\d+)+")

Needed = Union[Site, Reliance]
Sites = Mapping[str, Tuple[Needed, ...]]


def bare_sites() -> Sites:
    """What the built-in patches need of upstream, without the variants that this command writes."""
    names = [item.name for item in pkgutil.iter_modules([str(UPSTREAM.parent)]) if item.ispkg]
    modules = {name: importlib.import_module(f"coati_ext.patches.{name}.sites") for name in names}
    return {name: (*it.SITES, *getattr(it, "RELIES", ())) for name, it in modules.items()}


@dataclass(frozen=True)
class Row:
    """What was found in one tree."""

    name: str
    generation: str
    confirmed: int
    new: int
    missing: int


@dataclass(frozen=True)
class News:
    """Code that nobody has reviewed for some patches, and the trees of this run that have it."""

    target: str
    generation: str
    function: Function
    patches: Tuple[str, ...]
    trees: List[str]


class Record:
    """The variants of a file, to which trees are added one by one."""

    def __init__(self, known: Variants, sites: Sites) -> None:
        self.known = known
        self.given: List[str] = []
        self.functions: Dict[str, Dict[str, Function]] = {}
        """What was found, by target and tree."""
        self.rows: List[Row] = []
        self.news: Dict[Tuple[str, str, str], News] = {}
        self.problems: List[str] = []
        self.absent: Dict[str, List[str]] = {}
        """The trees without a target that only some releases have."""
        self._names = {item: list(known.trees.generations.get(item, ())) for item in GENERATIONS}
        self._sites: Dict[Tuple[str, str], Dict[str, Needed]] = {}
        """By target and generation: the patches that need it there."""
        for patch, declared in sites.items():
            for site in filter(is_by_code, declared):
                for generation in site.generations:
                    self._sites.setdefault((site.target, generation), {})[patch] = site
        self._codes: Dict[str, Dict[str, str]] = {}
        """By target and tree: the fingerprint."""
        self._taken: List[Tuple[str, Variant]] = []
        for target, variants in known.targets.items():
            for variant in variants:
                self._take(target, variant)

    @property
    def trees(self) -> Trees:
        """The trees of the file and those added since."""
        return Trees({generation: tuple(names) for generation, names in self._names.items()})

    def add(self, name: str, coati: Coati) -> None:
        """Compare a tree's functions with what is known, and take them in."""
        self.given.append(name)
        if name not in self.trees.names:
            _insert(self._names[coati.generation], name)
        counts = {"confirmed": 0, "new": 0, "missing": 0}
        for (target, generation), sites in sorted(self._sites.items()):
            if generation == coati.generation:
                counts[self._compare(name, coati, target, sites)] += 1
        self.rows.append(Row(name, coati.generation, **counts))

    def variants(self) -> Variants:
        """What is known now, in canonical order."""
        trees = self.trees
        targets: Dict[str, Tuple[Variant, ...]] = {}
        for target in sorted(self._codes):
            groups: Dict[Tuple[str, Tuple[Tuple[str, str], ...]], List[str]] = {}
            for name in trees.names:
                if name in self._codes[target]:
                    code = self._codes[target][name]
                    words = self._words(target, trees.generation(name), code, name)
                    groups.setdefault((code, tuple(sorted(words.items()))), []).append(name)
            found = [
                Variant(code, trees.parse(trees.text(names)), dict(words))
                for (code, words), names in groups.items()
            ]
            if found:
                targets[target] = tuple(found)
        return Variants(trees, targets)

    def gone(self) -> List[str]:
        """What the file says of code that no tree has any more."""
        told = []
        for target, variant in self._taken:
            if variant.fingerprint not in self._codes[target].values():
                words = ", ".join(f"{key} = {word}" for key, word in variant.verdicts.items())
                names = self.known.trees.text(variant.trees)
                told.append(f"left over: no tree has the {target} of {names} ({words})")
        return told

    def _take(self, target: str, variant: Variant) -> None:
        """Keep what the file says as far as a patch asks for it."""
        patches: Set[str] = set()
        nobody = []
        for name in variant.trees:
            sites = self._sites.get((target, self.known.trees.generation(name)), {})
            patches.update(sites)
            if sites:
                self._codes.setdefault(target, {})[name] = variant.fingerprint
            else:
                nobody.append(name)
        if nobody:
            names = self.known.trees.text(nobody)
            self.problems.append(f"left over: no patch needs the {target} of {names}")
        if not patches:
            return
        self._taken.append((target, variant))
        for patch in sorted(variant.verdicts.keys() - patches):
            names = self.known.trees.text(variant.trees)
            self.problems.append(f"left over: {patch} does not need the {target} of {names}")

    def _compare(self, name: str, coati: Coati, target: str, sites: Mapping[str, Needed]) -> str:
        before = self._codes.setdefault(target, {}).pop(name, None)
        try:
            function = coati.function(*target.split(":"))
        except CoatiNotFoundError as error:
            self.problems.append(f"{name}: {error}")
            return "missing"
        if before and (function is None or function.fingerprint != before):
            self.problems.append(f"{name}: {target} is not what the file says it is")
        if function is None:
            if all(site.optional for site in sites.values()):
                self.absent.setdefault(target, []).append(name)
            else:
                self.problems.append(f"{name} has no {target}, which {', '.join(sites)} needs")
            return "missing"
        self.functions.setdefault(target, {})[name] = function
        code = self._codes[target][name] = function.fingerprint
        words = self._words(target, coati.generation, code, name)
        unreviewed = tuple(patch for patch, word in words.items() if word == UNREVIEWED)
        if not unreviewed:
            return "confirmed"
        news = News(target, coati.generation, function, unreviewed, [])
        self.news.setdefault((target, coati.generation, code), news).trees.append(name)
        return "new"

    def _words(self, target: str, generation: str, code: str, name: str) -> Dict[str, str]:
        """What was said of a code, for each patch that needs the target in this generation.

        A word counts where the site that it was said of is the one that applies.
        """
        words = {}
        for patch, site in self._sites.get((target, generation), {}).items():
            said = [
                (name not in variant.trees, variant.verdicts[patch])
                for variant in self.known.targets.get(target, ())
                if variant.fingerprint == code
                and patch in variant.verdicts
                and self.known.trees.within(variant.trees, site.generations)
            ]
            words[patch] = min(said)[1] if said else UNREVIEWED
        return words


def render(variants: Variants) -> str:
    """The file's text."""
    parts = [HEADER, "\n[trees]\n"]
    for generation in GENERATIONS:
        names = variants.trees.generations.get(generation, ())
        parts.append(f"{generation} = [{', '.join(json.dumps(name) for name in names)}]\n")
    for target, found in variants.targets.items():
        for variant in found:
            said = {"releases": variants.trees.text(variant.trees)}
            said.update(fingerprint=variant.fingerprint, **variant.verdicts)
            lines = [f"{key} = {json.dumps(value)}\n" for key, value in said.items()]
            parts.append(f'\n[["{target}"]]\n{"".join(lines)}')
    return "".join(parts)


def main(arguments: Sequence[str], file: Path = UPSTREAM, sites: Optional[Sites] = None) -> int:
    """Run the command.

    Returns:
        0 when all is known and reviewed, 1 when not, 2 for wrong use.
    """
    parser = argparse.ArgumentParser(prog="nox -s upstream --", description=__doc__)
    parser.add_argument("trees", nargs="*", metavar="NAME=PATH", help="a tree of upstream")
    parser.add_argument("--check", action="store_true", help="write nothing")
    given = parser.parse_args(arguments)
    try:
        known = read_variants(file)
        coatis = {name: Coati(standin(name[-2:]) / "coati", name[-2:]) for name in STANDINS}
        coatis.update(_given(given.trees, known.trees))
    except CoatiExtError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    record = Record(known, bare_sites() if sites is None else sites)
    for name, coati in coatis.items():
        record.add(name, coati)
    _tell(record)
    text = render(record.variants())
    unreviewed = _unreviewed(text)
    if text == file.read_text(encoding="utf-8"):
        print(f"\n{file} is up to date")
    elif given.check:
        print(f"\n{file} would change, to these lines: run this without --check")
    else:
        file.write_text(text, encoding="utf-8")
        print(f"\n{file} is written")
    if unreviewed:
        print('Unreviewed: edit each word to "fits" or "right", and commit. Until then the patch')
        print("refuses that code, or warns of it; code that it does not fit wants another site.")
        print("\n".join(f"  line {line}" for line in unreviewed))
    return 1 if unreviewed or record.problems or record.gone() else 0


def _given(arguments: Sequence[str], known: Trees) -> Dict[str, Coati]:
    coatis: Dict[str, Coati] = {}
    for argument in arguments:
        name, _, path = argument.partition("=")
        if not path or not _NAME.fullmatch(name) or name in coatis:
            raise InputError(f"{argument!r}: wants NAME=PATH, and each name once")
        root = Path(path) / "coati"
        root = root if root.is_dir() else Path(path)
        generation = generation_of(root)
        expected = known.generation(name) if name in known.names else generation
        if generation != expected:
            raise InputError(f"{name} is {expected}, and the coati at {root} {generation}")
        coatis[name] = Coati(root, generation)
    return coatis


def _insert(names: List[str], name: str) -> None:
    """Put a version among the versions, and any other name last."""
    place = len(names)
    if _VERSION.fullmatch(name):
        older = [at for at, item in enumerate(names) if _VERSION.fullmatch(item)]
        older = [at for at in older if _version(names[at]) < _version(name)]
        place = older[-1] + 1 if older else 0
    names.insert(place, name)


def _version(name: str) -> List[int]:
    return [int(part) for part in re.findall(r"\d+", name)]


def _tell(record: Record) -> None:
    print(f"{'tree':<14}  in  confirmed  new  missing")
    for row in record.rows:
        counts = f"{row.confirmed:>9}  {row.new:>3}  {row.missing:>7}"
        print(f"{row.name:<14}  {row.generation}  {counts}")
    real = [name for name in record.trees.names if name not in STANDINS]
    given = [name for name in real if name in record.given]
    extent = "the whole file is checked" if given == real else "the others are taken as they are"
    print(f"\n{len(given)} of {len(real)} trees and the stand-ins: {extent}")
    for target, names in sorted(record.absent.items()):
        print(f"not in {record.trees.text(names)}: {target} (optional)")
    for problem in [*record.problems, *record.gone()]:
        print(f"error: {problem}")
    for news in record.news.values():
        print(f"\nnew in {', '.join(news.trees)}: {news.target} ({', '.join(news.patches)})")
        print("\n".join(_difference(news, record)))


def _difference(news: News, record: Record) -> List[str]:
    """How new code differs from the most alike that was reviewed for one of its patches."""
    function, trees = news.function, record.known.trees
    code, place = function.fingerprint, f"{function.file}:{function.line}"
    relatives = [
        variant
        for variant in record.known.targets.get(news.target, ())
        if {variant.verdicts.get(patch) for patch in news.patches} & {FITS, RIGHT}
    ]
    if not relatives:
        return [f"  {place}", "  nothing of this function was reviewed yet"]
    nearest = max(relatives, key=lambda variant: likeness(code, variant.fingerprint))
    label = trees.text(nearest.trees)
    if nearest.fingerprint == code:
        return [f"  {place}", f"  the code of {label}, where the patch has another site"]
    for name, relative in record.functions[news.target].items():
        if relative.fingerprint == nearest.fingerprint:
            return _diff(f"{name} {relative.file}:{relative.line}", relative, place, function)
    signature, new, missing = changed_statements(code, nearest.fingerprint)
    told = [f"  differs from {label}{' in its signature' if signature else ''}"]
    for index in new:
        line, statement = function.statement(index)
        told.append(f"  {function.file}:{line}: {statement}")
    if missing:
        told.append(f"  {missing} statement{'s' * (missing > 1)} missing")
    more = [name for name in nearest.trees if name not in record.given]
    return [*told, *(f"  add {name}=PATH for the whole difference" for name in more[-1:])]


def _diff(old_place: str, old: Function, new_place: str, new: Function) -> List[str]:
    lines = difflib.unified_diff(
        old.text.splitlines(), new.text.splitlines(), old_place, new_place, lineterm=""
    )
    return list(lines)


def _unreviewed(text: str) -> List[str]:
    """Each unreviewed word of a file, by its line."""
    found, target, releases = [], "", ""
    for number, line in enumerate(text.splitlines(), 1):
        key, _, value = line.partition(" = ")
        if line.startswith("[["):
            target = line.strip('[]"')
        elif key == "releases":
            releases = json.loads(value)
        elif value == f'"{UNREVIEWED}"':
            found.append(f"{number}: {key} = {value}  ({target} of {releases})")
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
