"""``coati-ext run``: check the plan before the job takes its GPUs, then start the job patched."""

from __future__ import annotations

import os
import re
import shutil
import sys
from argparse import REMAINDER, ArgumentParser, Namespace
from pathlib import Path
from typing import Any, Dict, List, NoReturn, Sequence, Tuple

from coati_ext import __version__
from coati_ext.errors import ConfigError, RefusedError, nearest
from coati_ext.launch import installation, ray
from coati_ext.launch.flag import says_off
from coati_ext.plan import make_plan
from coati_ext.settings import FROZEN, Entry, freeze, from_text, only


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.usage = "coati-ext run [--patch NAME] [--set KEY=VALUE] [--config FILE] -- COMMAND ..."
    parser.add_argument(
        "--patch",
        metavar="NAME",
        action="append",
        default=[],
        help="switch on only this patch (repeatable)",
    )
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="a setting, such as eos_pooling.pooling=eos (repeatable)",
    )
    parser.add_argument("--config", metavar="FILE", help="read this file instead of coati-ext.toml")
    parser.add_argument(
        "arguments", metavar="COMMAND", nargs=REMAINDER, help="what starts your training"
    )


def run(options: Namespace) -> Tuple[int, Dict[str, Any]]:
    """Check the plan and exec the command, with the patches on in it and all its children.

    Raises:
        ConfigError: the command is missing or unknown, or the settings are wrong.
        RefusedError: its processes would not be armed, or a patch does not fit.
    """
    command = options.arguments[1:] if options.arguments[:1] == ["--"] else options.arguments
    if not command:
        raise ConfigError("nothing to run: coati-ext run -- python train.py")
    if shutil.which(command[0]) is None:
        likely = nearest(command[0], ("python", "torchrun", "colossalai", "accelerate", "ray"))
        raise ConfigError(f"no command {command[0]} on PATH{likely}")
    entries = _entries(options)
    if options.config:  # takes precedence over the settings frozen by an outer `coati-ext run`
        os.environ.pop(FROZEN, None)
        os.environ["COATI_EXT_CONFIG"] = os.path.abspath(options.config)
    plan = make_plan(options=entries)
    plan.check()
    _require_armed(command)
    os.environ.update(_variables(freeze(plan.layers)))
    # Both are in the frozen layers now, and their values may contain quotes or $.
    for name in ("COATI_EXT_SET", "COATI_EXT_CONFIG"):
        os.environ.pop(name, None)
    print(plan.report().headline, file=sys.stderr)
    _become(command)


def _entries(options: Namespace) -> List[Entry]:
    problems: List[str] = []
    entries = from_text(options.set, "coati-ext run --set", problems)
    if problems:
        raise ConfigError("\n".join(problems))
    if options.patch:
        entries.insert(0, only(options.patch, "coati-ext run --patch"))
    return entries


def _require_armed(command: Sequence[str]) -> None:
    """Raise unless every Python that the command is known to start will be armed."""
    pythons = _pythons(command)
    for (python, *flags), name in pythons.items():
        problem = installation.probe(python, flags).problem(__version__)
        if problem:
            raise RefusedError(
                f"{name} runs under {' '.join([python, *flags])}, whose processes would not be "
                f"patched: {problem}. Install coati-ext {__version__} there ({python} -m pip "
                "install ..., not --target), put the environment's own command first on PATH, or "
                "call coati_ext.enable() in the script; `coati-ext doctor` tells what is installed"
            )
    for gap in installation.gaps():
        if gap.here and not pythons:
            raise RefusedError(
                f"{gap.what} would not be patched: {gap.why}. The way out: {gap.way_out}, or call "
                "coati_ext.enable() in the script"
            )


def _pythons(command: Sequence[str]) -> Dict[Tuple[str, ...], str]:
    """The Pythons that the command is known to start, with their options, by command name."""
    found: Dict[Tuple[str, ...], str] = {}
    names = [command[0]]
    if Path(command[0]).name == "colossalai" and "run" in command[1:2]:
        names.append("torchrun")  # colossalai starts it from PATH
    for name in names:
        if shutil.which(name) is None:
            raise ConfigError(
                f"no {name} on PATH, which {command[0]} run starts: install torch there"
            )
        python = installation.interpreter_of(name)
        if python is not None:
            flags = _flags(command[1:]) if installation.is_python(name) else []
            found.setdefault((python, *flags), name)
    return found


def _flags(arguments: Sequence[str]) -> List[str]:
    """The interpreter options (-E, -I, -S, -s) that decide which start-up files run."""
    flags: List[str] = []
    rest = iter(arguments)
    for argument in rest:
        option = re.match(r"-([^-cmWX]*)([cmWX]?)(.*)", argument)
        if option is None or argument == "-":
            break
        letters, last, value = option.groups()
        flags += [f"-{letter}" for letter in letters if letter in "EISs"]
        if last in ("c", "m"):
            break
        if last and not value:  # the value of -W or -X is the next argument
            next(rest, "")
    return flags


def _variables(frozen: str) -> Dict[str, str]:
    """The environment variables for the job, safe inside a shell's ``export k="v"``."""
    given = os.environ.get("COATI_EXT", "")
    variables = {
        "COATI_EXT": "1" if says_off(given) else given,  # `coati-ext run` overrides off
        FROZEN: frozen,
        ray.RAY_HOOK: ray.OUR_HOOK,
    }
    other = os.environ.get(ray.RAY_HOOK, ray.OUR_HOOK)
    return variables if other == ray.OUR_HOOK else {**variables, ray.OTHER_HOOK: other}


def _become(command: Any) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvp(command[0], command)
