"""A watch for the first import of coati, in every process that the start-up file arms.

Beside modules that the interpreter holds already, this imports a few lines of ours. Everything
else, plugins included, loads when coati is imported: a failure there stops that import, whereas
``site`` would print and swallow a failure at start-up, and training would go on unpatched.
"""

from __future__ import annotations

import os
import sys

from coati_ext.launch.flag import says_off

TYPE_CHECKING = False  # typing is no module that the interpreter holds already
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any, Optional


class _Watch:
    """A ``sys.meta_path`` finder that lets the others find coati and arms it when it is run.

    Merely looking for coati, as ``find_spec`` or our own planning does, arms nothing.
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
    """A loader of coati that puts the patches in force before the package's own first line."""

    def __init__(self, loader: Any, watch: _Watch) -> None:
        self.loader = loader
        self.watch = watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def exec_module(self, module: ModuleType) -> None:
        """Arm, or fail the import; a second try after a failure is watched again."""
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        from coati_ext.switch import arm

        arm()
        if self.watch in sys.meta_path:
            sys.meta_path.remove(self.watch)
        self.loader.exec_module(module)


def activate() -> None:
    """Start the watch if ``COATI_EXT`` asks for it; starting it twice is the same as once.

    Also what a worker of a cluster calls when it is set up, where coati may be imported already.
    """
    if says_off(os.environ.get("COATI_EXT", "")):
        return
    if "coati" in sys.modules:
        from coati_ext.switch import arm

        arm()
        return
    if not any(isinstance(finder, _Watch) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watch())
