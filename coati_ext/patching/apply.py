"""Patch the imported modules in one transaction, and restore the original functions.

The ledger is the list of all writes in order. Undo replays it backwards; it never searches for
patched functions and never reloads a module.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import sys
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any, Callable, Dict, List, Sequence, Tuple

from coati_ext.errors import DisturbedError, RefusedError
from coati_ext.patching.steps import Step

ABSENT = object()
"""Marks an attribute that did not exist before the write."""


@dataclass(frozen=True)
class Write:
    """One change of an attribute of a module or class."""

    owner: Any
    name: str
    old: Any
    new: Any
    where: str
    """The name of the attribute, for messages."""

    def do(self) -> None:
        """Set the new value."""
        setattr(self.owner, self.name, self.new)

    def undo(self) -> None:
        """Restore the old value, or delete the attribute if there was none."""
        if self.old is ABSENT:
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, self.old)

    @property
    def in_place(self) -> bool:
        """Whether the attribute still holds the new value."""
        return vars(self.owner).get(self.name) is self.new


def apply_steps(steps: Sequence[Step], modules: Dict[str, ModuleType]) -> List[Write]:
    """Apply steps whose modules are imported, in one transaction.

    Every attribute is checked before the first write. If a write fails, the earlier ones are
    undone.

    Args:
        steps: the steps to apply, in order.
        modules: the imported module of each step's target, by name.

    Returns:
        The ledger, in the order of writing.

    Raises:
        RefusedError: an attribute does not hold the upstream function of the plan.
    """
    ledger: List[Write] = []
    held: Dict[Tuple[int, str], Any] = {}
    for step in steps:
        owner, name = _slot(modules[step.site.module], step)
        if (id(owner), name) in held:
            old = original = held[id(owner), name]
        elif step.site.mode == "extend":
            old, original = ABSENT, _inherited_function(owner, name, step)
        else:
            old = original = _upstream_function(owner, name, step)
        new = _replacement(step, original)
        ledger.append(Write(owner, name, old, new, step.site.target))
        held[id(owner), name] = new
        if inspect.ismodule(owner):
            ledger += _aliases(original, new, owner)
    done: List[Write] = []
    try:
        for write in ledger:
            write.do()
            done.append(write)
    except BaseException:
        for write in reversed(done):
            write.undo()
        raise
    return ledger


def undo(ledger: Sequence[Write]) -> None:
    """Undo every write, newest first.

    Raises:
        DisturbedError: an attribute was overwritten by something else; nothing is undone.
    """
    newest: Dict[Tuple[int, str], Write] = {(id(w.owner), w.name): w for w in ledger}
    disturbed = [write for write in newest.values() if not write.in_place]
    if disturbed:
        told = ", ".join(
            f"{write.where} (now {_described(vars(write.owner).get(write.name))})"
            for write in disturbed
        )
        raise DisturbedError(
            f"cannot undo: something else has since written to {told}. Undo that first; "
            "nothing was undone"
        )
    for write in reversed(ledger):
        write.undo()


def _slot(module: ModuleType, step: Step) -> Tuple[Any, str]:
    *owners, name = step.site.qualname.split(".")
    owner: Any = module
    for part in owners:
        if part not in vars(owner):
            raise RefusedError(f"{step.site.target} has no {part} at run time")
        owner = vars(owner)[part]
    if name not in vars(owner) and step.site.mode != "extend":
        raise RefusedError(
            f"{step.site.target} does not define {name} at run time, though its source does: "
            "something has removed it"
        )
    return owner, name


def _upstream_function(owner: Any, name: str, step: Step) -> Callable[..., Any]:
    """The attribute's value, checked to be the function whose source the plan has read."""
    value = vars(owner)[name]
    function = value
    if step.function is not None and step.function.node.decorator_list:
        function = inspect.unwrap(value)
    code = getattr(function, "__code__", None)
    if not isinstance(function, FunctionType) or code is None:
        raise RefusedError(_foreign(step, value))
    assert step.function is not None
    # A loader may have compiled the module under a relative path or a symbolic link.
    same_file = os.path.realpath(code.co_filename) == os.path.realpath(step.function.file)
    if not same_file or code.co_firstlineno != step.function.line:
        raise RefusedError(_foreign(step, value))
    return value  # type: ignore[no-any-return]


def _inherited_function(owner: Any, name: str, step: Step) -> Callable[..., Any]:
    """The inherited method; refused if the class now defines the method itself."""
    if name in vars(owner):
        raise RefusedError(_foreign(step, vars(owner)[name]))
    return getattr(owner, name)  # type: ignore[no-any-return]


def _foreign(step: Step, value: object) -> str:
    return (
        f"{step.patch}: {step.site.target} was already changed by something else: it is now "
        f"{_described(value)}. Undo that patch, enable coati-ext before it, or leave this one out "
        f"(COATI_EXT_SET={step.patch}.enabled=false); nothing was patched"
    )


def _described(value: object) -> str:
    code = getattr(value, "__code__", None)
    if code is None:
        return f"{value!r}"
    name = f"{getattr(value, '__module__', '?')}.{getattr(value, '__qualname__', '?')}"
    return f"{name} from {code.co_filename}, line {code.co_firstlineno}"


def _replacement(step: Step, original: Callable[..., Any]) -> Callable[..., Any]:
    module, name = step.site.new.split(":")
    new: Callable[..., Any] = getattr(importlib.import_module(module), name)
    if step.site.mode == "replace":
        # Not functools.wraps: inspect.getsource would then show upstream's source. __name__ must be
        # upstream's, because a bound method is pickled as its instance and that name.
        new.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
        new.__name__ = step.site.qualname.split(".")[-1]
        return new

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return new(original, *args, **kwargs)

    return wrapper


def _aliases(original: object, new: object, home: ModuleType) -> List[Write]:
    """Writes for the names in other coati modules (``from x import f``) that hold the original."""
    writes = []
    for module_name, module in sorted(sys.modules.items()):
        if module_name.split(".")[0] != "coati" or module is home or module is None:
            continue
        for name, value in list(vars(module).items()):
            if value is original:
                writes.append(Write(module, name, original, new, f"{module_name}:{name}"))
    return writes
