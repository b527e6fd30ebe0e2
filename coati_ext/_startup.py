"""Imported by ``coati_ext.pth`` in every armed process: one that will be patched at start-up."""

from coati_ext.launch.watch import activate

__all__ = ["activate"]

activate()
