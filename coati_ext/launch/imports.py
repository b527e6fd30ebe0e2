"""Show the imports of some modules to a guard, whoever finds and loads them.

A finder on ``sys.meta_path`` would see only what the finders before it leave: one that is put in
front of it later loads coati unseen. So this wraps the function of importlib that asks them all,
for ``import``, ``importlib.import_module`` and ``importlib.reload`` alike. It imports nothing,
since every armed process has it from its start.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # typing would slow down the start of every armed process
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any, Callable, Optional, Protocol

    class Guard(Protocol):
        """What is shown imports."""

        def wants(self, name: str) -> bool:
            """Whether this module is to be shown."""

        def load(self, module: ModuleType, execute: Callable[[], None], again: bool) -> None:
            """Execute a module; an error stops its import.

            Args:
                module: the module, in ``sys.modules`` already.
                execute: what executes it.
                again: whether it was executed before, as by ``importlib.reload``.
            """


_importlib: Any = sys.modules["_frozen_importlib"]
_find_spec = _importlib._find_spec
_guard: Optional[Guard] = None


def guard() -> Optional[Guard]:
    """The guard in place."""
    return _guard


def put(new: Optional[Guard]) -> None:
    """Show imports to this guard from now on, or to none and leave importlib as it was."""
    global _guard
    _guard = new
    _importlib._find_spec = _find_spec if new is None else _shown


def being_executed(module: Optional[ModuleType]) -> bool:
    """Whether a module is in ``sys.modules`` and its first execution has not ended."""
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


def under_guard(module: Optional[ModuleType]) -> bool:
    """Whether a module that is being executed was shown to a guard, and will be again."""
    return isinstance(getattr(getattr(module, "__spec__", None), "loader", None), _Loader)


def _shown(name: str, path: Any, target: Any = None) -> Optional[ModuleSpec]:
    spec: Optional[ModuleSpec] = _find_spec(name, path, target)
    if spec is None or _guard is None or not _guard.wants(name):
        return spec
    if spec.loader is not None or "." not in name:  # a folder within coati may have no loader
        spec.loader = _Loader(spec.loader)  # type: ignore[assignment]
    return spec


class _Loader:
    """A loader that lets the guard execute the module. Looking for a module does nothing."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader  # None for a namespace package
        self.again = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> Optional[ModuleType]:
        """Let the loader make the module, if it can."""
        self.again = False  # importlib.reload makes none
        create: Any = getattr(self.loader, "create_module", None)
        module: Optional[ModuleType] = create(spec) if create is not None else None
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Let the guard execute the module."""
        try:
            if _guard is None:
                self._execute(module)
            else:
                _guard.load(module, lambda: self._execute(module), self.again)
        finally:
            self._step_back(module)

    def _execute(self, module: ModuleType) -> None:
        module.__loader__ = self.loader
        if hasattr(self.loader, "exec_module"):
            self.loader.exec_module(module)
        elif self.loader is not None:  # such as a zipimporter before Python 3.10
            self.loader.load_module(module.__name__)

    def _step_back(self, module: ModuleType) -> None:
        module.__loader__ = self.loader
        spec: Any = module.__spec__
        if getattr(spec, "loader", None) is self:
            spec.loader = self.loader
