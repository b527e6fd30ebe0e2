"""A report of what was planned or patched: ``str()`` for people, ``as_dict()`` for JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Dict, Optional, Tuple

APPLIED = "applied"
PENDING = "pending"
UPSTREAM = "already upstream"
REFUSED = "refused"
OFF = "off"


@dataclass(frozen=True)
class Row:
    """One target of one patch."""

    name: str
    """The patch."""
    state: str
    """``applied``, ``pending`` (its module is not imported yet), ``already upstream``,
    ``refused`` or ``off``."""
    target: str
    """``module:Qualified.name`` of the upstream function; empty for a patch that is off, or that
    changes none."""
    reason: str
    """Why the state is what it is."""


@dataclass(frozen=True)
class Report:
    """The state of every patch."""

    generation: Optional[str]
    """``G1`` to ``G4``, or ``None`` if no coati was found."""
    patches: Tuple[Row, ...]
    digest: str
    """A hash of generation, patches, options and plugins; it must be equal on all ranks."""
    notes: Tuple[str, ...] = ()
    """Further remarks, such as names in other modules that were rebound by a late ``enable``, and
    what plugins note by ``report_made``."""

    @property
    def headline(self) -> str:
        """One line for a log: the patches that are on, the generation and the digest."""
        names = sorted({row.name for row in self.patches if row.state != OFF})
        patches = ", ".join(names) or "no patches"
        return f"coati-ext: {patches} on coati generation {self.generation}, digest {self.digest}"

    def as_dict(self) -> Dict[str, object]:
        """The report as dictionaries, lists and strings."""
        return {
            "generation": self.generation,
            "digest": self.digest,
            "patches": [asdict(row) for row in self.patches],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        lines = [
            f"coati-ext: coati generation {self.generation or 'unknown'}, digest {self.digest}"
        ]
        widths = [max([len(getattr(row, key)) for row in self.patches] or [0]) for key in _COLUMNS]
        for row in self.patches:
            cells = [getattr(row, key).ljust(width) for key, width in zip(_COLUMNS, widths)]
            lines.append(("  " + "  ".join([*cells, row.reason])).rstrip())
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


_COLUMNS = ("name", "state", "target")
