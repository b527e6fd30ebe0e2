"""What the start-up file imports in every armed process. Its name is in ``coati_ext.pth``."""

from coati_ext.launch.watch import activate

__all__ = ["activate"]

activate()
