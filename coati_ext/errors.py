"""The errors of this package. Each also derives from the built-in error that fits it."""

from __future__ import annotations

import difflib
from typing import Any, Iterable

_SHOWN = 80  # letters of a value in a message


class CoatiExtError(Exception):
    """Any error of this package; ``exit_code`` is what the command line returns for it."""

    exit_code = 1


class ConfigError(CoatiExtError, ValueError):
    """Invalid settings; the message lists every problem, not only the first."""

    exit_code = 2


class UnknownNameError(CoatiExtError, ValueError):
    """A patch, hook or generation that does not exist."""

    exit_code = 2


class PluginError(CoatiExtError):
    """A plugin that cannot be loaded, or whose hooks are wrong."""


class CoatiNotFoundError(CoatiExtError, ImportError):
    """No coati is importable, or the package of that name is not ColossalAI Chat."""


class OldCoatiError(CoatiNotFoundError):
    """What is importable is chatgpt, the predecessor of coati, which no patch is for."""


class RefusedError(CoatiExtError, ImportError):
    """Upstream code that the patches do not recognise, or that something else has changed."""


class AlreadyEnabledError(CoatiExtError, RuntimeError):
    """``enable`` was called again with another plan."""


class DisturbedError(CoatiExtError, RuntimeError):
    """A patched function was overwritten by something else, so it cannot be restored."""


class RankError(CoatiExtError, RuntimeError):
    """A rank of the job has other patches or settings than the rest, or did not report."""


class StampError(CoatiExtError, RuntimeError):
    """A checkpoint trained with another input format or pooling, or with an unreadable stamp.

    A stamp is metadata in a checkpoint that says how its reward model was trained.
    """


class InputError(CoatiExtError, ValueError):
    """A checkpoint, data file or folder that a command cannot use."""

    exit_code = 2


class NotMeasuredError(CoatiExtError, RuntimeError):
    """What a ``Defect`` measures is not in this coati, or cannot be imported here."""


class ScriptError(CoatiExtError, RuntimeError):
    """A child process of a command failed."""


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean X?"`` for the closest known name in any case, or an empty string."""
    if len(name) > _SHOWN:  # the search takes the square of the length
        return ""
    names = {item.lower(): item for item in known}
    close = difflib.get_close_matches(name.lower(), list(names), n=1, cutoff=0.5)
    return f"; did you mean {names[close[0]]}?" if close else ""


def in_a_line(error: BaseException) -> str:
    """The error of another library in one line, with its kind where the message may not tell."""
    first = (str(error).strip().splitlines() or [""])[0][:300]
    return first if first and isinstance(error, OSError) else f"{type(error).__name__}: {first}"


def shown(value: Any, most: int = _SHOWN) -> str:
    """Any value as a message shows it: its ``repr``, cut to a number of letters."""
    try:
        text = repr(value)
    except Exception:  # a number with too many digits, too deep a nesting, a class of the user's
        text = f"<{type(value).__name__} that cannot be shown>"
    return text if len(text) <= most else f"{text[:most]}..."


def shown_name(name: str, most: int = _SHOWN) -> str:
    """A name as a message shows it: as it is, unless it is long or has control characters."""
    return name if 0 < len(name) <= most and name.isprintable() else shown(name, most)
