"""Write files atomically."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable


def put(file: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` fill a temporary file, then rename it to ``file``.

    Whatever happens meanwhile, the old file is there or the whole new one, even after a loss of
    power. A process that is killed may leave a file ``*.new`` beside it.

    Args:
        file: the file to write.
        write: writes the content to the path that it is given, on the same file system.
    """
    new = file.with_name(f"{file.name}.{os.getpid()}.new")
    try:
        write(new)
        with new.open("rb") as stream:
            os.fsync(stream.fileno())  # a rename may reach the disk before the content does
        os.replace(str(new), str(file))
    except BaseException:
        with suppress(OSError):
            new.unlink()
        raise
