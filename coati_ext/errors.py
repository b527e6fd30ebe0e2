"""The errors of this package. Each also derives from the built-in error that fits it."""

from __future__ import annotations

import difflib
from typing import Iterable


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


class ScriptError(CoatiExtError, RuntimeError):
    """A child process of a command failed."""


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean X?"`` for the closest known name in any case, or an empty string."""
    names = {item.lower(): item for item in known}
    close = difflib.get_close_matches(name.lower(), list(names), n=1, cutoff=0.5)
    return f"; did you mean {names[close[0]]}?" if close else ""
