"""``save_model`` and ``load_model`` of ColossalAI's ``Booster``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

from coati_ext.checkpoints import stamp

from .judgement import judge, stamp_of
from .state_dicts import already_judged
from .this_run import is_master, valued


def save_model(
    original: Callable[..., Any], self: Any, model: Any, checkpoint: Any, *args: Any, **kwargs: Any
) -> Any:
    """Save through a Booster: delete the old stamp, save the weights, then write the new stamp."""
    inner, _ = valued(model)
    if inner is None or not is_master():
        return original(self, model, checkpoint, *args, **kwargs)
    path = Path(checkpoint)
    stamp.remove(path)
    before = stamp.traces(path)
    result = original(self, model, checkpoint, *args, **kwargs)
    if hasattr(self.checkpoint_io, "_sync_io"):  # with use_async, wait until weights are written
        self.checkpoint_io._sync_io()
    current = stamp_of(inner)
    # On some errors, such as a file in place of a folder, upstream only logs and writes nothing.
    if current is not None and stamp.traces(path) != before:
        stamp.write(path, current)
    return result


def load_model(
    original: Callable[..., Any], self: Any, model: Any, checkpoint: Any, *args: Any, **kwargs: Any
) -> Any:
    """Load through a Booster; compare the stamp before any weight is loaded."""
    inner, _ = valued(model)
    if inner is None:
        return original(self, model, checkpoint, *args, **kwargs)
    judge(inner, lambda: stamp.read(Path(checkpoint)), str(checkpoint))
    with already_judged():
        return original(self, model, checkpoint, *args, **kwargs)
