"""Files that are written at once or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Callable


def put(file: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` fill another file, which then takes the place of this one.

    A process that is killed meanwhile leaves what was there, and perhaps a file ``*.new`` beside.

    Args:
        file: where the content is to be.
        write: writes it to the path that it is given, on the same file system.
    """
    new = file.with_name(f"{file.name}.{os.getpid()}.new")
    write(new)
    os.replace(str(new), str(file))
