"""Write replacements into imported modules, and give the original functions back.

The ledger lists every write of a session in order. A write is recorded before it is made, so that
an interrupt at any point leaves a ledger from which everything can be given back. Which value a
slot (an attribute of a module or class) gets back is read from the ledger and from what the slot
holds now. So giving back can itself be interrupted, and done again.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

from coati_ext.errors import DisturbedError, RefusedError
from coati_ext.patching.source import Function, function_in
from coati_ext.patching.steps import Step

ABSENT = object()
"""Marks an attribute that does not exist."""
_BARE = {"abstractmethod", "override"}
"""Decorators that return the function itself."""
_ACTOR = "__ray_metadata__"
"""What Ray knows of an actor class."""
_JOBS = ("cluster_and_job", "session_and_job")
"""What it calls the job that it has last pickled the class for; the second in older releases."""
_TRACING = "ray.util.tracing.tracing_helper"
"""The module of the layer that Ray puts around every method of an actor class."""


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

    @property
    def held(self) -> Any:
        """What the attribute holds now, or ``ABSENT``."""
        return vars(self.owner).get(self.name, ABSENT)

    @property
    def in_force(self) -> bool:
        """Whether calls reach the new value: it is in place, or wrapped by something later."""
        return any(value is self.new for value in _unwrapped(self.held))


def writes_for(steps: Sequence[Step], modules: Dict[str, ModuleType]) -> List[Write]:
    """The writes that apply some steps whose modules are imported. Every attribute is checked.

    Args:
        steps: the steps to apply, in order.
        modules: the imported module of each step's target, by name.

    Raises:
        RefusedError: an attribute does not hold the upstream function of the plan.
    """
    functions = [_ours(step) for step in steps]  # may run a user's code, so before the slots
    writes: List[Write] = []
    held: Dict[Tuple[int, str], Any] = {}
    for step, ours in zip(steps, functions):
        owner, name = _slot(modules[step.site.module], step)
        if (id(owner), name) in held:
            old = original = held[id(owner), name]
        elif step.site.mode == "extend":
            old, original = ABSENT, _inherited_function(owner, name, step)
        else:
            old = original = _upstream_function(owner, name, step)
        new = _replacement(step, ours, original)
        writes.append(Write(owner, name, old, new, step.site.target))
        held[id(owner), name] = new
        if inspect.ismodule(owner):
            writes += _aliases(original, new, owner)
    return writes


def write_all(writes: Sequence[Write], ledger: List[Write]) -> None:
    """Make some writes, each recorded in the ledger before it is made."""
    for write in writes:
        ledger.append(write)
        write.do()


def way_back(ledger: Sequence[Write]) -> List[Tuple[Any, str, Any]]:
    """Owner, name and old value of every slot that :func:`give_back` has to restore, newest first.

    Then the names in modules of coati that were imported since and have taken ours from another one
    (``from x import f``). A slot that has its old value already is left out, so that this can be
    asked again after an interrupt.

    Raises:
        DisturbedError: a slot holds neither ours nor upstream's function.
    """
    slots: Dict[Tuple[int, str], List[Write]] = {}
    for write in ledger:
        slots.setdefault((id(write.owner), write.name), []).append(write)
    back = []
    disturbed = []
    taken: Dict[int, Any] = {}
    for writes in reversed(list(slots.values())):
        last = writes[-1]
        ours = {id(write.new): write.old for write in writes}
        originals = [write.old for write in writes if id(write.old) not in ours]
        if inspect.ismodule(writes[0].owner):
            taken.update(dict.fromkeys(ours, originals[-1]))
        value = last.held
        while id(value) in ours:  # the patches of one function are stacked
            value = ours.pop(id(value))
        if value is not last.held:
            back.append((last.owner, last.name, value))
        elif not any(_same(value, original) for original in originals):
            disturbed.append(f"{last.where} (now {described(value)})")
    if disturbed:
        raise DisturbedError(
            f"cannot undo: something else has since written to {', '.join(reversed(disturbed))}. "
            "Undo that first; nothing was undone"
        )
    for _, module, name, value in _names_in_coati():
        if id(value) in taken and (id(module), name) not in slots:
            back.append((module, name, taken[id(value)]))
    return back


def give_back(owner: Any, name: str, value: Any) -> None:
    """Set an attribute to its old value, or delete it if it did not exist."""
    if value is ABSENT:
        delattr(owner, name)
    else:
        setattr(owner, name, value)


def written(step: Step, ledger: Sequence[Write]) -> Optional[Write]:
    """The last write to a step's slot, if there was one since its module was executed."""
    *owners, name = step.site.qualname.split(".")
    owner: Any = sys.modules.get(step.site.module)
    for part in owners:
        owner = _behind(getattr(owner, "__dict__", {}).get(part))
    found = [write for write in ledger if write.owner is owner and write.name == name]
    return found[-1] if found else None


def described(value: object) -> str:
    """A value for a message: a function by its name, file and line."""
    if value is ABSENT:
        return "absent"
    code = getattr(value, "__code__", None)
    if code is None:
        return f"{value!r}"
    kind = "" if type(value) is FunctionType else f"a {type(value).__name__} around "
    name = f"{getattr(value, '__module__', '?')}.{getattr(value, '__qualname__', '?')}"
    return f"{kind}{name} from {code.co_filename}, line {code.co_firstlineno}"


def _slot(module: ModuleType, step: Step) -> Tuple[Any, str]:
    *owners, name = step.site.qualname.split(".")
    owner: Any = module
    for part in owners:
        if part not in vars(owner):
            raise RefusedError(f"{step.site.target} has no {part} at run time")
        _require_no_actor(vars(owner)[part], step)
        owner = _behind(vars(owner)[part])
    if name not in vars(owner) and step.site.mode != "extend":
        raise RefusedError(
            f"{step.site.target} does not define {name} at run time, though its source does: "
            "something has removed it"
        )
    return owner, name


def _behind(owner: Any) -> Any:
    """The class that Ray runs, if this is an actor class, else what is given.

    ``ray.remote`` gives every method to a subclass of its own, even those that are inherited, and
    pickles that for the workers. The class as it was written is never asked again.
    """
    return getattr(getattr(owner, _ACTOR, None), "modified_class", owner)


def _require_no_actor(owner: Any, step: Step) -> None:
    """Raise if Ray has pickled an actor class for the workers of this job, which it does once."""
    metadata = getattr(owner, _ACTOR, None)
    if metadata is None or not sys.modules["ray"].is_initialized():
        return
    worker = importlib.import_module("ray._private.worker").global_worker
    made_for = [getattr(metadata, f"last_export_{name}", None) for name in _JOBS]
    if any(it == getattr(worker, f"current_{name}", ()) for it, name in zip(made_for, _JOBS)):
        raise RefusedError(
            f"{step.patch}: an actor of {step.site.module}.{metadata.class_name} was created "
            "before coati-ext was enabled, and all that follow run the same unpatched class: call "
            "coati_ext.enable() before the first .remote(), or start with `coati-ext run`"
        )


def _upstream_function(owner: Any, name: str, step: Step) -> Callable[..., Any]:
    """The attribute's value, checked to be the function whose source the plan has read."""
    value = vars(owner)[name]
    assert step.function is not None
    *wrappers, function = _unwrapped(value)
    if wrappers and getattr(wrappers[0], "__globals__", {}).get("__name__") == _TRACING:
        del wrappers[0]
    # Proxies pretend to be what they wrap, and have its __code__ too. Only type() tells.
    if type(function) is not FunctionType or len(wrappers) > _wrapping(step.function):
        raise RefusedError(_foreign(step, value))
    code = function.__code__
    # A loader may have compiled the module under a relative path or a symbolic link.
    same_file = os.path.realpath(code.co_filename) == os.path.realpath(step.function.file)
    if not same_file or code.co_firstlineno != step.function.line:
        raise RefusedError(_foreign(step, value))
    source = function_in(Path(step.function.file), step.site.qualname)
    if source != step.function and (source is None or source.fingerprint != step.fingerprint):
        raise RefusedError(
            f"{step.patch}: {step.site.target} was edited in {step.function.file} after the plan "
            "was made: call coati_ext.disable() and then enable()"
        )
    return value  # type: ignore[no-any-return]


def _unwrapped(value: Any) -> List[Any]:
    """A value, what it says that it wraps, and so on."""
    layers = [value]
    while len(layers) < 100:  # a mock has any attribute, without end
        inner = getattr(layers[-1], "__wrapped__", None)
        if inner is None:
            break
        layers.append(inner)
    return layers


def _wrapping(function: Function) -> int:
    """How many of a function's decorators may return something that wraps it."""
    names = [
        item.attr if isinstance(item, ast.Attribute) else getattr(item, "id", "")
        for item in function.node.decorator_list
    ]
    return sum(name not in _BARE for name in names)


def _inherited_function(owner: Any, name: str, step: Step) -> Callable[..., Any]:
    """The inherited method; refused if the class now defines the method itself."""
    if name in vars(owner):
        raise RefusedError(_foreign(step, vars(owner)[name]))
    return getattr(owner, name)  # type: ignore[no-any-return]


def _same(value: Any, old: Any) -> bool:
    """Whether a value is the old one, or the same code executed again."""
    if value is old:
        return True
    both = [_unwrapped(value), _unwrapped(old)]
    return all(type(item) is FunctionType for layers in both for item in layers) and (
        [item.__code__ for item in both[0]] == [item.__code__ for item in both[1]]
    )


def _foreign(step: Step, value: object) -> str:
    return (
        f"{step.patch}: {step.site.target} was already changed by something else: it is now "
        f"{described(value)}. Undo that patch, enable coati-ext before it, or leave this one out "
        f"(COATI_EXT_SET={step.patch}.enabled=false); nothing was patched"
    )


def _ours(step: Step) -> Callable[..., Any]:
    module, name = step.site.new.split(":")
    ours: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return ours


def _replacement(
    step: Step, new: Callable[..., Any], original: Callable[..., Any]
) -> Callable[..., Any]:
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


def _aliases(original: object, new: object, home: ModuleType) -> Iterator[Write]:
    """Writes for the names in other coati modules (``from x import f``) that hold the original."""
    for place, module, name, value in _names_in_coati():
        if value is original and module is not home:
            yield Write(module, name, original, new, f"{place}:{name}")


def _names_in_coati() -> Iterator[Tuple[str, ModuleType, str, Any]]:
    """Each imported module of coati, by its name, with each of its attributes."""
    for place in sorted(name for name in list(sys.modules) if f"{name}.".startswith("coati.")):
        module = sys.modules[place]
        if module is not None:
            for name, value in list(vars(module).items()):
                yield place, module, name, value
