"""``_save_to_state_dict`` and ``_load_from_state_dict`` of reward models and critics."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import Any, Callable, Iterator, Mapping, Optional, Tuple

from coati_ext.checkpoints import stamp

from .judgement import judge, stamp_of


def save_to_state_dict(
    original: Callable[..., None], self: Any, destination: Any, prefix: str, keep_vars: bool
) -> None:
    """Save the module and write the stamp into its entry of the state dict's ``_metadata``."""
    original(self, destination, prefix, keep_vars)
    current = stamp_of(self)
    if current is not None and hasattr(destination, "_metadata"):
        stamp.put(destination, current, prefix[:-1])


_BETWEEN = ("coati", "coati_ext", "colossalai", "torch")
_judged = False


@contextmanager
def already_judged() -> Iterator[None]:
    """Skip the comparison inside a ``with`` block, because the checkpoint's stamp was compared."""
    global _judged
    before, _judged = _judged, True
    try:
        yield
    finally:
        _judged = before


def load_from_state_dict(
    original: Callable[..., None],
    self: Any,
    state_dict: Any,
    prefix: str,
    local_metadata: Mapping[str, Any],
    *args: Any,
) -> None:
    """Compare the stamp before any weight is loaded.

    G2's training script saves the model inside its DDP or ZeRO wrapper, so every key starts with
    ``module.``. Its PPO script loads the file with ``strict=False``, which would silently load
    nothing. So these prefixes are removed first.
    """
    wrapper = _unwrap(self, state_dict, prefix)
    if not _judged:
        source = _loaded_at(self)
        metadata = getattr(state_dict, "_metadata", {}).get(wrapper, {}) if wrapper else {}

        def read() -> Tuple[Optional[stamp.Stamp], str]:
            found = stamp.of_metadata(metadata or local_metadata, source)
            return found, "it carries no stamp" if found is None else ""

        judge(self, read, source)
    original(self, state_dict, prefix, local_metadata, *args)


def _loaded_at(model: Any) -> str:
    """Name a state dict by the line that loads it, since it does not know its file."""
    frame = sys._getframe()
    while frame.f_back and str(frame.f_globals.get("__name__")).split(".")[0] in _BETWEEN:
        frame = frame.f_back
    place = f"{frame.f_code.co_filename}:{frame.f_lineno}"
    return f"the state dict that {place} loads into a {type(model).__name__}"


def _unwrap(model: Any, state_dict: Any, prefix: str) -> str:
    """Remove the ``module.`` prefixes shared by all keys; return them without the last dot."""
    wrapped = prefix
    while state_dict and all(key.startswith(f"{wrapped}module.") for key in state_dict):
        wrapped += "module."
    if wrapped == prefix or hasattr(model, "module"):
        return ""
    for key in list(state_dict):
        state_dict[prefix + key[len(wrapped) :]] = state_dict.pop(key)
    return wrapped[:-1]
