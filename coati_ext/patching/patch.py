"""Patches as data: which upstream functions a patch changes, and which code it was written for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Mapping, Tuple

GENERATIONS = ("G1", "G2", "G3", "G4")
"""Generations of coati's API, by ColossalAI release: G1 0.2.8 to 0.3.2, G2 0.3.3 to 0.3.6, G3 0.3.7
to 0.4.7, G4 from 0.4.8."""
MODES = ("replace", "wrap", "extend")


@dataclass(frozen=True)
class Site:
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
        for name in (self.target, self.new):
            if name.count(":") != 1 or not all(name.split(":")):
                raise ValueError(f"{name!r} is not of the form 'module:Qualified.name'")
        if self.mode not in MODES:
            raise ValueError(f"mode {self.mode!r} of {self.target} is not one of {MODES}")
        if self.takes and self.mode != "wrap":
            raise ValueError(f"{self.target}: only a wrap can rely on the signature alone")
        unknown = [name for name in self.generations if name not in GENERATIONS]
        if unknown or not self.generations:
            raise ValueError(
                f"generations {self.generations!r} of {self.target}: expected some of {GENERATIONS}"
            )

    @property
    def module(self) -> str:
        """The upstream module that defines the target."""
        return self.target.split(":")[0]

    @property
    def qualname(self) -> str:
        """The target's name within its module."""
        return self.target.split(":")[1]


@dataclass(frozen=True)
class Patch:
    """A named set of sites, in one or more generations."""

    name: str
    summary: str
    sites: Tuple[Site, ...]
    default: bool = False
    """Whether the patch is on by default."""
    after: Tuple[str, ...] = ()
    """Patches that must be applied to a shared target before this one. They must be on if any of
    its sites has ``fits``."""
    changes: str = ""
    """How the numbers change, in a few sentences for ``coati-ext explain``."""
    reference: str = ""
    """The upstream issue or the paper."""

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"patch name {self.name!r} is not an identifier")
        if not self.sites:
            raise ValueError(f"patch {self.name} has no sites")

    def sites_in(self, generation: str) -> Tuple[Site, ...]:
        """The sites of one generation, in the order of declaration."""
        return tuple(site for site in self.sites if generation in site.generations)
