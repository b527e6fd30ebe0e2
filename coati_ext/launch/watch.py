"""Wait for the first import of coati, in every process that the start-up file arms.

At start-up this imports almost nothing. Everything else, plugins included, loads when coati is
imported. An error then stops that import. An error at start-up would only be printed by ``site``,
and training would continue unpatched.
"""

from __future__ import annotations

import os
import sys

from coati_ext.launch.flag import says_off

TYPE_CHECKING = False  # typing would slow down the start of every armed process
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any, Optional


class _Watch:
    """A ``sys.meta_path`` finder that enables the patches when coati is imported.

    The other finders locate coati; this one wraps its loader. Calling ``find_spec`` for coati
    enables nothing.
    """

    def __init__(self) -> None:
        self.busy = False

    def find_spec(
        self, name: str, path: object = None, target: object = None
    ) -> Optional[ModuleSpec]:
        if name != "coati" or self.busy:
            return None
        from importlib.util import find_spec

        self.busy = True
        try:
            spec = find_spec(name)
        finally:
            self.busy = False
        if spec is not None and spec.loader is not None:
            spec.loader = _ArmingLoader(spec.loader, self)  # type: ignore[assignment]
        return spec


class _ArmingLoader:
    """A loader of coati that enables the patches before the package is executed."""

    def __init__(self, loader: Any, watch: _Watch) -> None:
        self.loader = loader
        self.watch = watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def exec_module(self, module: ModuleType) -> None:
        """Enable the patches, or fail the import. After a failure the next import tries again."""
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        from coati_ext.switch import arm

        arm()
        if self.watch in sys.meta_path:
            sys.meta_path.remove(self.watch)
        self.loader.exec_module(module)


def activate() -> None:
    """Install the finder if ``COATI_EXT`` is on, at most once.

    Ray workers call this as their set-up hook. If coati is already imported, the patches are
    enabled at once.
    """
    if says_off(os.environ.get("COATI_EXT", "")):
        return
    if "coati" in sys.modules:
        from coati_ext.switch import arm

        arm()
        return
    if not any(isinstance(finder, _Watch) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watch())
