"""Ray, whose workers are children of a raylet that was often started before the flag was set.

``coati-ext run -- python train.py`` makes :func:`ray_hook` merge the flag into every ``ray.init()``
of an unchanged script; in a script of your own, :func:`ray_runtime_env` does the same.
"""

from __future__ import annotations

import importlib
import os
from typing import Any, Callable, Dict, Mapping, Optional, Union

from coati_ext import switch
from coati_ext.launch.flag import says_off
from coati_ext.settings import FROZEN, freeze

RAY_HOOK = "RAY_RUNTIME_ENV_HOOK"
"""Where Ray reads the name of a function that may change the ``runtime_env`` of ``ray.init()``."""
OUR_HOOK = "coati_ext.launch.ray_hook"
OTHER_HOOK = "COATI_EXT_RAY_HOOK"
"""Where ``coati-ext run`` keeps the hook that was there before ours."""
SETUP = "coati_ext._startup.activate"
_SETUP_KEY = "worker_process_setup_hook"
_EXPORTED = "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR"


def ray_runtime_env(base: Optional[Mapping[str, Any]] = None) -> Dict[str, Any]:
    """A ``runtime_env`` for ``ray.init()`` whose workers run the patches that are in force here.

    They are those of ``enable(...)`` where it was called, else those of the flag, the variables and
    the files here, which need not exist on the cluster. Calling this asks for the patches, so the
    flag need not be set; set to off, it is off in the workers too. coati-ext has to be importable
    there; a worker that lacks it stops with an error that names it.

    Args:
        base: your own ``runtime_env``. What it has stays: its variables go before ours, and its
            set-up hook runs after ours.
    """
    merged = dict(base or {})
    given = dict(merged.get("env_vars") or {})
    layers = switch.layers_in_force()
    if layers.killed:
        return {**merged, "env_vars": {"COATI_EXT": "0", **given}}
    flag = os.environ.get("COATI_EXT", "")
    ours = {"COATI_EXT": "1" if says_off(flag) else flag, FROZEN: freeze(layers)}
    merged["env_vars"] = {**ours, **given}
    theirs = merged.get(_SETUP_KEY)
    if _EXPORTED not in given:  # else Ray has already put their hook there, and takes no other
        merged[_SETUP_KEY] = _both(theirs) if theirs else SETUP
    return merged


def ray_hook(runtime_env: Optional[Mapping[str, Any]]) -> Dict[str, Any]:
    """What Ray calls in ``ray.init()`` under ``coati-ext run``, with the script's own argument."""
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
