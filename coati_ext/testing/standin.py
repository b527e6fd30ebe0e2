"""The location of the stand-ins for coati."""

from __future__ import annotations

from pathlib import Path

from coati_ext.errors import UnknownNameError, nearest
from coati_ext.patching.patch import GENERATIONS


def standin(generation: str) -> Path:
    """Return the folder to put on `sys.path` or `PYTHONPATH` to import a small coati.

    The package found there has the module paths, signatures, shapes and defects of one
    generation ("G1" to "G4") and needs only torch, transformers and tqdm.

    Raises:
        ValueError: there is no such generation.
    """
    if generation not in GENERATIONS:
        hint = nearest(str(generation).upper(), GENERATIONS)
        raise UnknownNameError(
            f"no stand-in for {generation!r}, only for {', '.join(GENERATIONS)}{hint}"
        )
    return Path(__file__).resolve().parent / "standins" / generation.lower()
