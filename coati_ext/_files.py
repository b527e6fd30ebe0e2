"""Read a small file that may be anything."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def read_text(file: Path, limit: int) -> str:
    """The text in a regular file, without a byte order mark. ``/dev/null`` is an empty one.

    It does not wait for a writer where a FIFO lies, and reads no more than ``limit`` bytes.

    Raises:
        FileNotFoundError: there is nothing of that name, not even a link.
        ValueError: it is no such file; the message says what it is, as in "it is a folder".
    """
    name = os.fspath(file)
    try:
        number = os.open(name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        if os.path.islink(name):
            raise ValueError(f"it is a link to {os.readlink(name)}, which is not there") from None
        raise
    except OSError as error:
        raise ValueError(error.strerror) from error
    try:
        mode = os.fstat(number).st_mode
        if stat.S_ISDIR(mode):
            raise ValueError("it is a folder, a file was expected")
        if not stat.S_ISREG(mode) and not os.path.samefile(number, os.devnull):
            raise ValueError("it is a pipe or a device, a file was expected")
        with os.fdopen(number, "rb", closefd=False) as stream:
            content = stream.read(limit + 1)
    except OSError as error:
        raise ValueError(error.strerror) from error
    finally:
        os.close(number)
    if len(content) > limit:
        raise ValueError(f"it has more than {limit} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not text in UTF-8 ({error})") from error
