"""Patches as data: which upstream functions a patch changes or relies on, and of which code."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Mapping, Tuple

GENERATIONS = ("G1", "G2", "G3", "G4")
"""Generations of coati's API, by ColossalAI release: G1 0.2.8 to 0.3.2, G2 0.3.3 to 0.3.6, G3 0.3.7
to 0.4.7, G4 from 0.4.8."""
MODES = ("replace", "wrap", "extend")


class _Upstream:
    """One upstream function."""

    target: str
    generations: Tuple[str, ...]

    @property
    def module(self) -> str:
        """The upstream module that defines the target."""
        return self.target.split(":")[0]

    @property
    def qualname(self) -> str:
        """The target's name within its module."""
        return self.target.split(":")[1]

    def _require_form(self, *names: str) -> None:
        for name in names:
            if name.count(":") != 1 or not all(name.split(":")):
                raise ValueError(f"{name!r} is not of the form 'module:Qualified.name'")
        unknown = [name for name in self.generations if name not in GENERATIONS]
        if unknown or not self.generations:
            raise ValueError(
                f"generations {self.generations!r} of {self.target}: expected some of {GENERATIONS}"
            )


@dataclass(frozen=True)
class Site(_Upstream):
    """One upstream function that a patch changes."""

    target: str
    """``module:Qualified.name`` of the upstream function."""
    new: str
    """``module:function`` of our function; a string, so that declaring a patch imports no torch."""
    generations: Tuple[str, ...]
    """The generations in which the target is changed."""
    mode: str = "replace"
    """``replace`` calls ``new`` instead; ``wrap`` calls ``new(original, *args, **kwargs)``;
    ``extend`` does the same for a method that upstream's class only inherits."""
    fits: Mapping[str, str] = field(default_factory=dict)
    """Fingerprints of the released variants that ``new`` was written for, by label."""
    right: Mapping[str, str] = field(default_factory=dict)
    """Fingerprints of the released variants that need no change, by label."""
    takes: Tuple[str, ...] = ()
    """For a wrap that depends only on the signature: the parameters it reads, instead of ``fits``.
    Such a target may be in a package other than coati."""
    needs: Tuple[str, ...] = ()
    """Names such as ``self.value_head`` that an edited body must still use to be patched under
    ``policy = "structural"``."""
    optional: bool = False
    """Whether the target may be absent, as it is in some releases of these generations."""

    def __post_init__(self) -> None:
        self._require_form(self.target, self.new)
        if self.mode not in MODES:
            raise ValueError(f"mode {self.mode!r} of {self.target} is not one of {MODES}")
        if self.takes and self.mode != "wrap":
            raise ValueError(f"{self.target}: only a wrap can rely on the signature alone")


@dataclass(frozen=True)
class Reliance(_Upstream):
    """One upstream function that runs with a patch and is left as it is.

    An edited one is told in the report, by ``coati-ext plan`` and by a warning of ``enable()``.
    """

    target: str
    """``module:Qualified.name`` of the upstream function."""
    generations: Tuple[str, ...]
    """The generations in which the patch relies on it."""
    why: str
    """What it does that the patch needs, such as "samples the answers"."""
    refuse: bool = False
    """Whether an edit is refused unless ``policy = "structural"``: for code whose edit could change
    what is learnt without a sign."""
    fits: Mapping[str, str] = field(default_factory=dict)
    """Fingerprints of the variants that the patch was written with, by label."""
    optional: bool = False
    """Whether the target may be absent, as it is in some releases of these generations."""

    def __post_init__(self) -> None:
        self._require_form(self.target)


@dataclass(frozen=True)
class Patch:
    """A named set of sites, in one or more generations.

    One without sites changes no upstream function; its plugin implements choices.
    """

    name: str
    summary: str
    sites: Tuple[Site, ...]
    default: bool = False
    """Whether the patch is on by default."""
    after: Tuple[str, ...] = ()
    """Patches that must be applied to a shared target before this one. They must be on if any of
    its sites has ``fits``."""
    needs: Tuple[str, ...] = ()
    """Patches that must be on with this one, because they call what it offers."""
    changes: str = ""
    """How the numbers change, in a few sentences for ``coati-ext explain``."""
    reference: str = ""
    """The upstream issue or the paper."""
    relies: Tuple[Reliance, ...] = ()
    """What it does not change and is right only with."""
    leaves: Tuple[str, ...] = ()
    """Known defects near its sites that it does not repair, for ``coati-ext doctor``."""

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"patch name {self.name!r} is not an identifier")

    def sites_in(self, generation: str) -> Tuple[Site, ...]:
        """The sites of one generation, in the order of declaration."""
        return tuple(site for site in self.sites if generation in site.generations)

    def relies_in(self, generation: str) -> Tuple[Reliance, ...]:
        """The reliances of one generation, in the order of declaration."""
        return tuple(item for item in self.relies if generation in item.generations)
