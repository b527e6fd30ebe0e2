"""Patch the workers of a Ray cluster.

They are children of a raylet, which may have been started before ``COATI_EXT`` was set. ``coati-ext
run -- python train.py`` makes :func:`ray_hook` add the flag to every ``ray.init()`` of an unchanged
script. In your own script, call :func:`ray_runtime_env`.
"""

from __future__ import annotations

import importlib
import os
from typing import Any, Callable, Dict, Mapping, Optional, Union

from coati_ext import switch
from coati_ext.launch.flag import kills
from coati_ext.settings import FROZEN, freeze

RAY_HOOK = "RAY_RUNTIME_ENV_HOOK"
"""Ray's environment variable with the name of a function that may change ``runtime_env``."""
OUR_HOOK = "coati_ext.launch.ray_hook"
OTHER_HOOK = "COATI_EXT_RAY_HOOK"
"""The environment variable in which ``coati-ext run`` keeps a hook that was set before."""
SETUP = "coati_ext._startup.activate"
_SETUP_KEY = "worker_process_setup_hook"
_EXPORTED = "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR"


def ray_runtime_env(base: Optional[Mapping[str, Any]] = None) -> Dict[str, Any]:
    """A ``runtime_env`` for ``ray.init()`` that gives the workers the patches of this process.

    The settings are those of ``enable(...)`` if it was called, else those of ``COATI_EXT``, the
    variables and the files here; the files need not exist on the cluster. ``COATI_EXT`` may be
    unset here, but if it is set to off, it is off in the workers too. coati-ext must be importable
    there; a worker without it stops with an error that names it.

    Args:
        base: your own ``runtime_env``. It is kept: its variables take precedence over ours, and its
            set-up hook runs after ours.
    """
    merged = dict(base or {})
    given = dict(merged.get("env_vars") or {})
    flag = os.environ.get("COATI_EXT", "")
    if kills(flag):
        return {**merged, "env_vars": {"COATI_EXT": "0", **given}}
    ours = {"COATI_EXT": flag.strip() or "1", FROZEN: freeze(switch.layers_in_force())}
    merged["env_vars"] = {**ours, **given}
    theirs = merged.get(_SETUP_KEY)
    if _EXPORTED not in given:  # else Ray has already exported their hook and accepts no other
        merged[_SETUP_KEY] = _both(theirs) if theirs else SETUP
    return merged


def ray_hook(runtime_env: Optional[Mapping[str, Any]]) -> Dict[str, Any]:
    """Add the patches to the script's ``runtime_env``; Ray calls this under ``coati-ext run``."""
    other = os.environ.get(OTHER_HOOK)
    return ray_runtime_env(_named(other)(runtime_env) if other else runtime_env)


def _both(theirs: Union[str, Callable[[], Any]]) -> Callable[[], None]:
    def coati_ext_and_yours() -> None:
        _named(SETUP)()
        (_named(theirs) if isinstance(theirs, str) else theirs)()

    return coati_ext_and_yours


def _named(path: str) -> Callable[..., Any]:
    module, _, name = path.rpartition(".")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function
