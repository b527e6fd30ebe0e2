"""The errors a user can meet, each a small class on the built-in that a caller would expect."""

from __future__ import annotations

import difflib
from typing import Iterable


class CoatiExtError(Exception):
    """Any error of this package; ``exit_code`` is what the command line returns for it."""

    exit_code = 1


class ConfigError(CoatiExtError, ValueError):
    """Settings that cannot be used: the message lists every problem, not only the first."""

    exit_code = 2


class UnknownNameError(CoatiExtError, ValueError):
    """A patch, hook or generation that does not exist."""

    exit_code = 2


class PluginError(CoatiExtError):
    """A plugin that cannot be loaded, or whose hooks are wrong."""


class CoatiNotFoundError(CoatiExtError, ImportError):
    """No coati here, or something else that carries its name."""


class RefusedError(CoatiExtError, ImportError):
    """Upstream code that the patches do not know, or that somebody else has already changed."""


class AlreadyEnabledError(CoatiExtError, RuntimeError):
    """A second ``enable`` with another plan."""


class DisturbedError(CoatiExtError, RuntimeError):
    """A patched name no longer holds what was written there, so undoing would break it."""


class RankError(CoatiExtError, RuntimeError):
    """A rank of the job that would train otherwise than the rest, or that did not report."""


class StampError(CoatiExtError, RuntimeError):
    """A checkpoint that was trained in another form, or whose stamp cannot be read."""


class InputError(CoatiExtError, ValueError):
    """A checkpoint, a data file or a folder that a command cannot work with."""

    exit_code = 2


class ScriptError(CoatiExtError, RuntimeError):
    """A process that a command started for its work has failed."""


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean X?"`` for the closest known name, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""
