"""Find calls that bypass a patched method: overriding subclasses and earlier bound methods."""

from __future__ import annotations

import gc
import sys
from collections import Counter
from types import MethodType
from typing import Any, Dict, Iterator, Sequence, Set, Tuple

from coati_ext.patching.apply import Write


def overriding(ledger: Sequence[Write]) -> Tuple[str, ...]:
    """A note for each subclass of a patched class that overrides the patched method."""
    notes = []
    for write in ledger:
        for cls in _descendants(write.owner):
            own = vars(cls).get(write.name)
            if own is not None:
                code = getattr(own, "__code__", None)
                place = f" ({code.co_filename}, line {code.co_firstlineno})" if code else ""
                notes.append(
                    f"{cls.__module__}.{cls.__qualname__} overrides {write.name}{place} and is "
                    "reached only if it calls super()"
                )
    return tuple(notes)


def captured(ledger: Sequence[Write]) -> Tuple[str, ...]:
    """A note for each class with instances that still call upstream's method.

    Either the instance has an attribute of the method's name, as accelerate sets it, or some object
    holds its bound method. All objects of the process are scanned, which takes about 0.1 s; the
    scan is skipped if no patched class was imported before ``enable``.
    """
    names: Dict[type, Set[str]] = {}
    for write in ledger:
        if isinstance(write.owner, type):
            for cls in (write.owner, *_descendants(write.owner)):
                names.setdefault(cls, set()).add(write.name)
    if not names:
        return ()
    replaced = {id(write.old): write.name for write in ledger}
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    compiled = getattr(dynamo, "OptimizedModule", None)
    looked_for = {MethodType, compiled, *names}
    methods: Dict[int, Tuple[str, Any]] = {}
    found: Dict[Tuple[str, int], Any] = {}
    uncalled: Set[int] = set()
    for item in [item for item in gc.get_objects() if type(item) in looked_for]:
        cls = type(item)
        if cls is compiled:
            # It stores the bound method that it found, but calls the model.
            uncalled.update(map(id, vars(item).values()))
        elif cls is not MethodType:
            found.update({(name, id(item)): item for name in names[cls] if name in vars(item)})
        elif id(item.__func__) in replaced:
            methods[id(item)] = (replaced[id(item.__func__)], item.__self__)
    for number, (name, instance) in methods.items():
        if number not in uncalled:
            found[name, id(instance)] = instance
    counts = Counter((type(instance), name) for (name, _), instance in found.items())
    return tuple(
        f"{count} of {cls.__module__}.{cls.__qualname__} had {name} taken from it or set on it "
        f"before enable(), and what took it still calls upstream's: call enable() first, or set "
        "it anew"
        for (cls, name), count in counts.items()
    )


def _descendants(owner: Any) -> Iterator[type]:
    """Yield all direct and indirect subclasses of a class; nothing for a module."""
    if isinstance(owner, type):
        child: type
        for child in type.__subclasses__(owner):
            yield child
            yield from _descendants(child)
