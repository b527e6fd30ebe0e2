"""Wait for the first import of coati, in every process that the start-up file arms.

At start-up this imports almost nothing. Everything else, plugins included, loads when a module of
coati is imported while the flag is on and no patches are in force. An error then stops that import.
An error at start-up would only be printed by ``site``, and training would continue unpatched.
"""

from __future__ import annotations

import os
import sys

from coati_ext.launch import imports
from coati_ext.launch.flag import says_off

TYPE_CHECKING = False  # typing would slow down the start of every armed process
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Callable


class _Watch:
    """The guard of an armed process until its patches are in force."""

    def wants(self, name: str) -> bool:
        """Whether it is coati, or a module of it: the package itself may be made by hand."""
        return name.split(".")[0] == "coati"

    def load(self, module: ModuleType, execute: Callable[[], None], again: bool) -> None:
        """Enable the patches, or fail the import. After a failure the next import tries again."""
        if not says_off(os.environ.get("COATI_EXT", "")):
            _arm()
        guard = imports.guard()
        if guard is None or guard is self:
            execute()
        else:
            guard.load(module, execute, again)


def activate() -> None:
    """Watch the imports if ``COATI_EXT`` is on.

    Ray workers call this as their set-up hook. If coati is already imported, the patches are
    enabled at once.
    """
    if says_off(os.environ.get("COATI_EXT", "")):
        return
    if "coati" in sys.modules:
        _arm()
    elif imports.guard() is None:
        imports.put(_Watch())


def _arm() -> None:
    try:
        from coati_ext.switch import arm
    except Exception as error:
        raise ImportError(
            f"COATI_EXT asks for patches, but coati-ext is not whole here ({type(error).__name__}: "
            f"{error}): install it again, or unset COATI_EXT"
        ) from error
    arm()
