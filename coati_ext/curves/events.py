"""Scalars from TensorBoard's event files, through TensorBoard's own reader."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Callable, Dict, List, Sequence, Tuple

from coati_ext.errors import InputError

Curve = List[Tuple[int, float]]
"""Steps and values, in the order of the steps."""
Run = Dict[str, Curve]
"""The curves of a run by name."""


def runs_in(places: Sequence[Path]) -> Dict[str, Path]:
    """The folders that hold event files, by the shortest parts of their paths that differ.

    Args:
        places: folders that hold runs at any depth, or event files.

    Raises:
        InputError: there is no event file in one of them; names it.
    """
    found: List[Path] = []
    for place in places:
        if not place.exists():
            raise InputError(f"{place} does not exist: expected a folder with event files")
        files = [place] if place.is_file() else place.rglob("*")
        here = {file.parent for file in files if "tfevents" in file.name and file.is_file()}
        if not here:
            raise InputError(
                f"{place} holds no event file (*tfevents*): expected a log_dir of a run"
            )
        found += sorted(here)
    folders = [folder.resolve() for folder in dict.fromkeys(found)]
    common = Path(os.path.commonpath([str(folder.parent) for folder in folders]))
    paths = [folder.relative_to(common).parts for folder in folders]
    for depth in range(1, max(map(len, paths)) + 1):
        names = ["/".join(path[:depth]) for path in paths]
        if len({*names}) == len(names):
            break
    return dict(zip(names, folders))


def read(runs: Dict[str, Path], tell: Callable[[str], None]) -> Dict[str, Run]:
    """The scalars of each run; of a step that was written twice, as after a restart, the last.

    Args:
        runs: folders by name.
        tell: called with the name of the run that is being read.
    """
    tell("loading TensorBoard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for name, folder in runs.items():
        tell(f"reading {name}")
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        events.Reload()
        found[name] = {
            tag: sorted({item.step: item.value for item in events.Scalars(tag)}.items())
            for tag in events.Tags()["scalars"]
        }
    return found
