"""Decide from upstream's source what each patch will do. Nothing is changed.

A site is one upstream function that a patch changes. Each site of each enabled patch becomes a
step: known code will be patched, code that is already correct is skipped, and unknown code is
refused with the lines that differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, Mapping, Optional, Sequence, Tuple, Union

from coati_ext.errors import CoatiNotFoundError, RefusedError, UnknownNameError, nearest
from coati_ext.patching.fingerprint import statements
from coati_ext.patching.patch import Patch, Site
from coati_ext.patching.reliances import Reading
from coati_ext.patching.source import Coati, Function, OfFunction
from coati_ext.report import PENDING, REFUSED, UPSTREAM

POLICIES = ("strict", "structural")


@dataclass(frozen=True)
class Edit:
    """How a function differs from the nearest release that a patch knows."""

    nearest: str
    """The release."""
    lines: Tuple[int, ...]
    """Of its file: those of the signature and the top-level statements that the release lacks."""
    missing: int
    """The number of the release's statements that the function lacks."""
    first: int
    """The line that shows the edit: the first of them, or that of the function."""


@dataclass(frozen=True)
class Step(OfFunction):
    """What the plan will do with one site."""

    patch: str
    site: Site
    state: str
    """``pending`` (to be applied), ``already upstream`` or ``refused``."""
    reason: str
    function: Optional[Function] = None
    edit: Optional[Edit] = None
    """How the function differs from every code that the patch knows, if it does."""


def plan_steps(patches: Sequence[Patch], coati: Coati, policy: str) -> Tuple[Step, ...]:
    """The steps of some patches for this coati, in the order of application.

    Raises:
        RefusedError: two patches change the same function and declare no valid order.
    """
    steps = []
    for patch in patches:
        sites = patch.sites_in(coati.generation)
        steps += [step for site in sites for step in _step(patch, site, coati, policy)]
    _require_order(steps, {patch.name: patch for patch in patches})
    return tuple(steps)


def in_order(patches: Mapping[str, Patch]) -> Tuple[Patch, ...]:
    """Sort patches so that each comes after those named in its ``after``, else by name.

    Raises:
        UnknownNameError: ``after`` names an unknown patch, or forms a cycle.
    """
    done: Dict[str, Patch] = {}

    def visit(name: str, trail: Tuple[str, ...]) -> None:
        if name in trail:
            raise UnknownNameError(f"patches come after each other: {' -> '.join((*trail, name))}")
        if name not in patches:
            raise UnknownNameError(
                f"patch {trail[-1]} comes after {name}, which does not exist"
                f"{nearest(name, patches)}"
            )
        for earlier in patches[name].after:
            visit(earlier, (*trail, name))
        done.setdefault(name, patches[name])

    for name in sorted(patches):
        visit(name, ())
    return tuple(done.values())


def refusal(found: Sequence[Union[Step, Reading]]) -> Optional[RefusedError]:
    """One error for all refused steps and readings, or ``None`` if there are none."""
    refused = [item for item in found if item.state == REFUSED]
    if not refused:
        return None
    told = "\n".join(f"{item.patch}: {item.reason}" for item in refused)
    names = ",".join(sorted({item.patch for item in refused}))
    edits = [item.patch for item in refused if isinstance(item, Step) and item.edit]
    lines = f" `coati-ext diff {edits[0]}` marks your lines with `!`." if edits else ""
    return RefusedError(
        f"coati-ext refuses to patch code that it does not know, and has patched nothing.\n{told}\n"
        'Ways out: restore the upstream function; set policy = "structural" '
        "(COATI_EXT_SET=policy=structural) if your edit keeps the function's interface and the "
        f"patch may replace it or build on it; or leave the patch out ({_without(names)}).{lines}"
    )


def edited(site: Site, function: Function) -> Optional[Edit]:
    """How a function differs from the nearest code that a site knows.

    ``None`` if it is that code, or the site knows none.
    """
    known = {**site.fits, **site.right}
    if not known or function.fingerprint in known.values():
        return None
    label, signature, new, missing = function.nearest(known)
    body = statements(function.node)
    lines = [*range(function.line, body[0].lineno if body else function.line + 1)] * signature
    for index in new:
        lines += range(body[index].lineno, (body[index].end_lineno or body[index].lineno) + 1)
    return Edit(label, tuple(lines), missing, lines[0] if lines else function.line)


def _without(names: str) -> str:
    return "COATI_EXT_SET=" + ",".join(f"{name}.enabled=false" for name in names.split(","))


def _step(patch: Patch, site: Site, coati: Coati, policy: str) -> List[Step]:
    try:
        function = coati.function(site.module, site.qualname)
    except CoatiNotFoundError as error:
        return [Step(patch.name, site, REFUSED, str(error))]
    if site.mode == "extend":
        return _extending_step(patch, site, coati, function)
    if function is None:
        if site.optional:
            return []
        reason = f"{site.target} does not exist in the coati at {coati.root}"
        return [Step(patch.name, site, REFUSED, reason)]
    if function.is_descriptor:
        reason = f"{site.target} is no plain function or method, the only things patched here"
        return [Step(patch.name, site, REFUSED, reason, function)]
    if site.takes:
        return [_wrapping_step(patch, site, function)]
    found = function.fingerprint
    for label, known in site.right.items():
        if found == known:
            reason = f"right since {label}: nothing to do"
            return [Step(patch.name, site, UPSTREAM, reason, function)]
    for label, known in site.fits.items():
        if found == known:
            return [Step(patch.name, site, PENDING, f"fits {label}", function)]
    difference = function.difference({**site.fits, **site.right})
    probe = _unfit(site, function)
    edit = edited(site, function)
    if edit is not None and policy == "structural" and not probe:
        lost = f"your edit at line {edit.first} will be overwritten"
        reason = f"fits in structure; {lost}: {difference}"
        return [Step(patch.name, site, PENDING, reason, function, edit)]
    reason = f"{function.file}, line {function.line}: {site.qualname} {difference}"
    if policy == "structural":
        reason += f"; policy structural does not let it through, because {probe}"
    return [Step(patch.name, site, REFUSED, reason, function, edit)]


def _extending_step(
    patch: Patch, site: Site, coati: Coati, function: Optional[Function]
) -> List[Step]:
    """A step for a method that upstream's class only inherits."""
    owner, _, name = site.qualname.rpartition(".")
    if not coati.has_class(site.module, owner):
        if site.optional:
            return []
        reason = f"{site.module}:{owner} does not exist in the coati at {coati.root}"
        return [Step(patch.name, site, REFUSED, reason)]
    if function is not None:
        reason = (
            f"{function.file}, line {function.line}: {owner} has a {name} of its own, which no "
            "release has"
        )
        return [Step(patch.name, site, REFUSED, reason, function)]
    return [Step(patch.name, site, PENDING, f"{owner} inherits {name}")]


def _wrapping_step(patch: Patch, site: Site, function: Function) -> Step:
    """A step that accepts any function with the parameters that the wrapper reads."""
    missing = [name for name in site.takes if name not in function.parameters]
    if missing:
        reason = (
            f"{function.file}, line {function.line}: {site.qualname} takes no {missing[0]} "
            f"(it takes {', '.join(function.parameters)})"
        )
        return Step(patch.name, site, REFUSED, reason, function)
    return Step(patch.name, site, PENDING, f"takes {', '.join(site.takes)}", function)


def _unfit(site: Site, function: Function) -> str:
    """The structural check that an edited function fails, if any."""
    signatures = {item.split("-")[0] for item in site.fits.values()}
    if function.fingerprint.split("-")[0] not in signatures:
        return "the signature is none of the released ones"
    unused = [name for name in site.needs if not function.uses(name)]
    return f"the body does not use {', '.join(unused)}" if unused else ""


def _require_order(steps: Sequence[Step], patches: Mapping[str, Patch]) -> None:
    before: Dict[str, List[str]] = {}
    for step in steps:
        earlier = before.setdefault(step.site.target, [])
        for name in earlier:
            if name not in patches[step.patch].after:
                raise RefusedError(
                    f"patches {name} and {step.patch} both change {step.site.target}: one of them "
                    "must name the other in `after`, or be switched off"
                )
        if earlier and step.site.mode == "replace":
            raise RefusedError(
                f"patch {step.patch} would replace {step.site.target}, which patch {earlier[-1]} "
                "has changed: only a wrap can come after another patch"
            )
        earlier.append(step.patch)
