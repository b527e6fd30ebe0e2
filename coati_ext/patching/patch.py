"""A patch as frozen data: what it changes, where, and which upstream code it was written for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Mapping, Tuple

GENERATIONS = ("G1", "G2", "G3", "G4")
MODES = ("replace", "wrap", "extend")


@dataclass(frozen=True)
class Site:
    """One upstream function that a patch changes."""

    target: str
    """``module:Qualified.name`` of the upstream function; the colon says where importing ends."""
    new: str
    """``module:function`` of ours, a string so that declaring a patch imports no torch."""
    generations: Tuple[str, ...]
    """The generations in which the target is changed."""
    mode: str = "replace"
    """``replace`` calls ``new`` in its stead; ``wrap`` calls ``new(original, *args, **kwargs)``;
    ``extend`` does so for a method that upstream's class only inherits."""
    fits: Mapping[str, str] = field(default_factory=dict)
    """Fingerprint of each released variant that ``new`` was written for, by its label."""
    right: Mapping[str, str] = field(default_factory=dict)
    """Fingerprint of each released variant that needs no change, by its label."""
    takes: Tuple[str, ...] = ()
    """For a wrap that relies on the signature alone: the parameters it reads, instead of ``fits``;
    such a target may lie in another package than coati."""
    needs: Tuple[str, ...] = ()
    """Names that an edited body must still use (``self.value_head``) to fit in structure."""
    optional: bool = False
    """Whether some releases of these generations lack the target."""

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
    """A named change of upstream, made of sites in any of its generations."""

    name: str
    summary: str
    sites: Tuple[Site, ...]
    default: bool = False
    """Whether ``enable()`` with nothing set switches it on."""
    after: Tuple[str, ...] = ()
    """Names of patches whose change of a shared target this one builds upon; they must be on,
    unless none of its sites was written for particular code (``fits``)."""
    changes: str = ""
    """What differs in the numbers, in a few sentences for ``coati-ext explain``."""
    reference: str = ""
    """Upstream's issue or the paper behind it."""

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"patch name {self.name!r} is not an identifier")
        if not self.sites:
            raise ValueError(f"patch {self.name} has no sites")

    def sites_in(self, generation: str) -> Tuple[Site, ...]:
        """The sites of one generation, in the order in which they are declared."""
        return tuple(site for site in self.sites if generation in site.generations)
