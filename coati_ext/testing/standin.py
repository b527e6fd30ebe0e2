"""Where the stand-ins for coati live."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

GENERATIONS = ("G1", "G2", "G3", "G4")


def standin(generation: str) -> Path:
    """Return the folder to put on `sys.path` or `PYTHONPATH` to import a small coati.

    The package found there has the module paths, signatures, shapes and defects of one
    generation ("G1" to "G4") and needs only torch, transformers and tqdm.

    Raises:
        ValueError: there is no such generation.
    """
    if generation not in GENERATIONS:
        close = get_close_matches(str(generation).upper(), GENERATIONS, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"no stand-in for {generation!r}, only for {', '.join(GENERATIONS)}{hint}")
    return Path(__file__).resolve().parent / "standins" / generation.lower()
