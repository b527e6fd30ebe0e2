"""``coati-ext run``: refuse here, before the job takes its GPUs, what every worker would refuse."""

from __future__ import annotations

import os
import shutil
import sys
from argparse import REMAINDER, ArgumentParser, Namespace
from pathlib import Path
from typing import Any, Dict, NoReturn, Tuple

from coati_ext.errors import ConfigError, RefusedError
from coati_ext.flag import says_off
from coati_ext.install import startup_file
from coati_ext.plan import make_plan


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.usage = "coati-ext run [--patch NAME] [--set KEY=VALUE] [--config FILE] -- COMMAND ..."
    parser.add_argument(
        "--patch", metavar="NAME", action="append", default=[], help="only this patch (repeatable)"
    )
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="a setting, as in eos_pooling.pooling=eos (repeatable)",
    )
    parser.add_argument("--config", metavar="FILE", help="a configuration file")
    parser.add_argument("arguments", metavar="COMMAND", nargs=REMAINDER)


def run(options: Namespace) -> Tuple[int, Dict[str, Any]]:
    """Check the plan and become the command, with the patches on in it and all its children.

    Raises:
        ConfigError: no or an unknown command, or wrong settings.
        RefusedError: its processes would not be armed, or the plan does not fit.
    """
    command = options.arguments[1:] if options.arguments[:1] == ["--"] else options.arguments
    if not command:
        raise ConfigError("nothing to run: coati-ext run -- torchrun train.py")
    if shutil.which(command[0]) is None:
        raise ConfigError(f"no command {command[0]} on PATH")
    os.environ.update(environment(options))
    plan = make_plan()
    plan.check()
    if startup_file() is None:
        raise RefusedError(
            "the start-up file coati_ext.pth is in no site directory of this Python, so the "
            "command's processes would not be patched: install coati-ext with pip (not --target) "
            "into this environment, or call coati_ext.enable() in the script"
        )
    print(plan.report().headline, file=sys.stderr)
    _become(command)


def environment(options: Namespace) -> Dict[str, str]:
    """The variables that carry the options: plain enough for a shell's ``export k="v"``."""
    for setting in options.set:
        if "," in setting or '"' in setting or "$" in setting:
            raise ConfigError(
                f"--set {setting}: a value with , or quotes or $ does not survive the launchers' "
                "shells; put it into coati-ext.toml"
            )
    settings = [item for item in (os.environ.get("COATI_EXT_SET", ""), *options.set) if item]
    variables = {"COATI_EXT": ",".join(options.patch) or _flag()}
    if settings:
        variables["COATI_EXT_SET"] = ",".join(settings)
    if options.config:
        variables["COATI_EXT_CONFIG"] = str(Path(options.config).resolve())
    return variables


def _flag() -> str:
    """The caller's own ``COATI_EXT`` stands, except that off is overruled by asking to run."""
    given = os.environ.get("COATI_EXT", "")
    return "1" if says_off(given) else given


def _become(command: Any) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvp(command[0], command)
