"""Repair ColossalAI Chat's (coati's) RLHF maths at run time, behind one flag.

``COATI_EXT=1`` in the environment switches the patches on for a process and all its children;
:func:`enable` does the same in a script or notebook. Every name below is loaded when it is first
used, so that importing this package costs nothing while the patches are off.
"""

from __future__ import annotations

__version__ = "0.4.0"

TYPE_CHECKING = False  # importing typing would slow down every Python start-up
if TYPE_CHECKING:
    from coati_ext.active import announce, choice, options
    from coati_ext.hookspecs import hookimpl
    from coati_ext.patching.defect import Defect
    from coati_ext.patching.patch import Patch, Reliance, Site
    from coati_ext.patching.variants import with_variants
    from coati_ext.report import Report
    from coati_ext.settings import option
    from coati_ext.switch import applied, disable, enable, status

_HOMES = {
    "Defect": "coati_ext.patching.defect",
    "Patch": "coati_ext.patching.patch",
    "Reliance": "coati_ext.patching.patch",
    "Report": "coati_ext.report",
    "Site": "coati_ext.patching.patch",
    "announce": "coati_ext.active",
    "applied": "coati_ext.switch",
    "choice": "coati_ext.active",
    "disable": "coati_ext.switch",
    "enable": "coati_ext.switch",
    "hookimpl": "coati_ext.hookspecs",
    "option": "coati_ext.settings",
    "options": "coati_ext.active",
    "status": "coati_ext.switch",
    "with_variants": "coati_ext.patching.variants",
}

__all__ = [
    "Defect",
    "Patch",
    "Reliance",
    "Report",
    "Site",
    "announce",
    "applied",
    "choice",
    "disable",
    "enable",
    "hookimpl",
    "option",
    "options",
    "status",
    "with_variants",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'coati_ext' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
