"""Write files atomically."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Callable


def put(file: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` fill a temporary file, then rename it to ``file``.

    A process that is killed meanwhile leaves the old file, and perhaps a file ``*.new`` beside it.

    Args:
        file: the file to write.
        write: writes the content to the path that it is given, on the same file system.
    """
    new = file.with_name(f"{file.name}.{os.getpid()}.new")
    write(new)
    os.replace(str(new), str(file))
