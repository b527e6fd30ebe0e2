"""``coati-ext doctor``: check installation and compatibility; ``--live`` measures the defects."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from argparse import Namespace
from typing import Any, Dict, List, Tuple

import coati_ext
from coati_ext import __version__
from coati_ext.cli.child import run_module
from coati_ext.cli.read import plan_facts, plan_view
from coati_ext.cli.screen import table, write
from coati_ext.launch import installation
from coati_ext.launch.flag import says_off
from coati_ext.report import REFUSED

Facts = Dict[str, Any]
LAUNCHERS = ("torchrun", "colossalai")


def facts(options: Namespace) -> Tuple[int, Facts]:
    """The state of the installation, of coati, of the plan and, with ``--live``, of the defects."""
    status, plan = plan_facts(options)
    file = installation.startup_file()
    found: Facts = {
        "version": __version__,
        "location": os.path.dirname(coati_ext.__file__),
        "install": installation.kind(),
        "startup_file": str(file) if file else None,
        "startup_line": file.read_text().strip() if file else None,
        "startup_why": installation.startup_reason(file) if file else None,
        "gaps": [dataclasses.asdict(gap) for gap in installation.gaps()],
        "launchers": _launchers(),
        "flag": os.environ.get("COATI_EXT"),
        "armed": not says_off(os.environ.get("COATI_EXT", "")) and file is not None,
        "python": sys.executable,
        "versions": {
            name: installation.version_of(name) for name in ("torch", "transformers", "colossalai")
        },
        "plan": plan,
    }
    if found["versions"]["torch"] is None:
        status = 1
    if options.live and plan["generation"]:
        found["live"] = _measure()
        wrong = [item for item in found["live"] if item["verdict"] != "right"]
        status = max(status, int(bool(wrong)))
    found["verdict"], found["next"] = _verdict(found)
    return status, found


def _launchers() -> List[Facts]:
    """The launchers on PATH, their Pythons, and why the processes of these would not be patched."""
    pythons = {name: installation.interpreter_of(name) for name in LAUNCHERS}
    problems = {
        python: None if python is None else installation.probe(python).problem(__version__)
        for python in {*pythons.values()}
    }
    return [
        {"name": name, "file": shutil.which(name), "python": it, "problem": problems[it]}
        for name, it in pythons.items()
    ]


def _verdict(found: Facts) -> Tuple[str, str]:
    plan = found["plan"]
    if plan["broken_plugins"]:
        return "a plugin is broken; a training run would refuse to start", "coati-ext plugins"
    if not plan["generation"]:
        return "there is no coati to patch here", "coati-ext demo"
    if found["versions"]["torch"] is None:
        return f"torch is not installed for {found['python']}", "pip install torch"
    refused = [
        item["patch"] for item in [*plan["steps"], *plan["relies"]] if item["state"] == REFUSED
    ]
    if refused:
        return f"{refused[0]} does not fit this coati", f"coati-ext diff {refused[0]}"
    if any(item["verdict"] != "right" for item in found.get("live", [])):
        return "a defect remains with the patches on", "coati-ext doctor --live --json"
    here = [gap for gap in found["gaps"] if gap["here"]]
    if here:
        return (
            f"everything fits, but COATI_EXT=1 would arm no process, as {here[0]['why']}; "
            "enable() in a script works",
            here[0]["way_out"],
        )
    if not found["armed"]:
        return "everything fits; the flag is off, so nothing is patched", "export COATI_EXT=1"
    return "everything fits and the flag is on", "coati-ext run -- torchrun train.py"


def _measure() -> List[Facts]:
    """Each defect with the patches off and on, in two fresh processes."""
    given = os.environ.get("COATI_EXT", "")
    off = run_module("coati_ext.cli.measure", "off", flag="0")
    on = run_module("coati_ext.cli.measure", "on", flag="" if says_off(given) else given)
    before = {item["name"]: item["value"] for item in off}
    return [{**item, "before": before[item["name"]], "after": item["value"]} for item in on]


def view(found: Facts) -> None:
    """Print :func:`facts`."""
    file, flag = found["startup_file"], found["flag"]
    versions = [f"{name} {version or 'missing'}" for name, version in found["versions"].items()]
    write(
        table(
            ["", ""],
            [
                ["coati-ext", f"{found['version']}, {found['install']} at {found['location']}"],
                ["python", f"{found['python']}; {', '.join(versions)}"],
                ["start-up file", file or "none in a site directory"],
                ["  its line", found["startup_line"] or ""],
                ["  why", found["startup_why"] or ""],
                *[["not armed", f"{gap['what']}: {gap['why']}"] for gap in found["gaps"]],
                *[[item["name"], _launcher_view(item)] for item in found["launchers"]],
                ["flag", f"COATI_EXT={flag}" if flag else "COATI_EXT is not set"],
            ],
        ),
        "",
    )
    plan_view(found["plan"])
    if "live" in found:
        rows = [
            [item["name"], item["patch"], item["summary"]]
            + [_number(item[key]) for key in ("before", "after", "right")]
            + [item["verdict"]]
            for item in found["live"]
        ]
        write("", table(["defect", "patch", "measured", "off", "on", "ideal", ""], rows))
    write("", f"verdict: {found['verdict']}", f"next: {found['next']}")


def _launcher_view(item: Facts) -> str:
    if item["file"] is None:
        return "not on PATH"
    if item["python"] is None:
        return f"{item['file']}: cannot be told which Python runs it"
    state = f"would not be patched: {item['problem']}" if item["problem"] else "armed by the flag"
    return f"{item['file']}, under {item['python']}: {state}"


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
