"""The ``coati-ext`` command.

Most commands are two functions: one returns its results as plain data, which ``--json`` prints, and
one prints the same data as text. Exit status: 0 fine, 1 refused or unfit, 2 wrong use.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from typing import Any, Callable, Dict, Iterator, List, NoReturn, Optional, Tuple

from coati_ext import __version__
from coati_ext.cli import bench, calibrate, demo, doctor, migrate, plot, read, run, show
from coati_ext.cli.folder import on_path
from coati_ext.errors import CoatiExtError, InputError, nearest

Facts = Dict[str, Any]
Command = Callable[[argparse.Namespace], Tuple[int, Facts]]
LOOKS = (  # they make a plan only to show it
    doctor.facts,
    read.list_facts,
    read.plan_facts,
    read.explain_facts,
    read.diff_facts,
    read.config_facts,
    read.plugins_facts,
)


START = """\
coati-ext repairs coati's RLHF maths at run time. Where to start:

  coati-ext doctor              what is wrong with the coati here, and what to type next
  coati-ext demo                what the patches do, on tiny models; needs no coati
  coati-ext run -- COMMAND ...  a training command with the patches on
  coati-ext --help              all commands"""


class _Help(argparse.HelpFormatter):
    """Leaves room for the indent of commands, which argparse does not count."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog)
        self._action_max_length = len("    calibrate")


class _Parser(argparse.ArgumentParser):
    """Also names the command that may have been meant."""

    def error(self, message: str) -> NoReturn:
        told = re.search(r"invalid choice: '(.*?)' \(.*?choose from (.*)\)", message)
        hint = nearest(told.group(1), re.findall(r"[\w-]+", told.group(2))) if told else ""
        super().error(message + hint)


def main(arguments: Optional[List[str]] = None) -> int:
    """Run the command line and return its exit status."""
    options = _parser().parse_args(arguments)
    if options.command is None:
        print(START, file=sys.stderr)
        return 2
    json_only = getattr(options, "json", False)
    try:
        _require_working_directory()
        with on_path(), _printing_to_stderr() if json_only else nullcontext():
            status, facts = options.command(options)
    except CoatiExtError as error:
        if json_only:
            print(json.dumps({"error": type(error).__name__, "message": str(error)}, indent=2))
        else:
            print(f"coati-ext: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader, such as `| head`, has closed the pipe
        sys.stderr.close()
        return 0
    if json_only:
        print(json.dumps(facts, indent=2))
    elif options.view is not None:
        options.view(facts)
    return int(status)


def _require_working_directory() -> None:
    try:
        os.getcwd()
    except FileNotFoundError:
        raise InputError(
            "the working directory was deleted: change to a folder that exists"
        ) from None


@contextmanager
def _printing_to_stderr() -> Iterator[None]:
    """Let what plugins and their child processes print go to standard error."""
    sys.stdout.flush()
    standard = os.dup(1)
    with suppress(OSError):  # without a standard error, what Python prints is kept back
        os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(standard, 1)
        os.close(standard)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="coati-ext",
        description="Repairs coati's RLHF maths at run time. Start with: coati-ext doctor",
        epilog="exit status: 0 fine, 1 refused or unfit, 2 wrong use",
        formatter_class=_Help,
    )
    parser.add_argument("--version", action="version", version=f"coati-ext {__version__}")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(metavar="COMMAND")

    def add(
        name: str, help: str, command: Command, view: Optional[Callable[[Facts], None]]
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(command=command, view=view)
        if view is not None:
            sub.add_argument("--json", action="store_true", help="print the result as JSON")
        if command in LOOKS:
            told = "load no plugin of yours; show each as not loaded"
            sub.add_argument("--no-plugins", action="store_true", help=told)
        return sub

    sub = add("doctor", "check the installation and this coati", doctor.facts, doctor.view)
    sub.add_argument(
        "--live", action="store_true", help="also measure each bug, patches off and on (2 minutes)"
    )
    add("list", "the patches: on or off, and why", read.list_facts, read.list_view)
    add(
        "plan",
        "a dry run: what would be patched, function by function",
        read.plan_facts,
        read.plan_view,
    )
    sub = add("explain", "a patch or a hook in detail", read.explain_facts, read.explain_view)
    sub.add_argument("name", metavar="NAME", help="the patch, or the hook")
    told = "upstream's functions against those of a patch, line by line"
    sub = add("diff", told, read.diff_facts, read.diff_view)
    sub.add_argument("name", metavar="NAME", help="the patch")
    add(
        "config",
        "every setting, its value and where it was set",
        read.config_facts,
        read.config_view,
    )
    sub = add(
        "plugins", "the plugins found, and their hooks", read.plugins_facts, read.plugins_view
    )
    sub.add_argument("--hook", metavar="HOOK", help="only those that implement this hook")
    sub = add("run", "check the plan, then run a command with the patches on", run.run, None)
    run.add_arguments(sub)
    sub = add(
        "demo", "train tiny models with the patches off and on, and compare", demo.facts, demo.view
    )
    demo.add_arguments(sub)
    sub = add("show", "the layout of a batch, upstream's beside ours", show.facts, show.view)
    show.add_arguments(sub)
    sub = add(
        "bench", "measure the time and memory that token_saving saves here", bench.facts, bench.view
    )
    bench.add_arguments(sub)
    sub = add("plot", "draw the curves of trainings from their logs", plot.facts, plot.view)
    plot.add_arguments(sub)
    sub = add("migrate", "re-fit a mean-pooled reward model's head", migrate.facts, migrate.view)
    migrate.add_arguments(sub)
    sub = add(
        "calibrate",
        "measure the level of a reward model's rewards",
        calibrate.facts,
        calibrate.view,
    )
    calibrate.add_arguments(sub)
    return parser
