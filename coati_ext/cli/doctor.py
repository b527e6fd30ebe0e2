"""``coati-ext doctor``: check installation and compatibility; ``--live`` measures the defects.

It begins with a verdict and with what to type next.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any, Dict, List, Tuple

import coati_ext
from coati_ext import __version__
from coati_ext.cli.child import Run, side_by_side
from coati_ext.cli.read import flag_text, plan_facts, plan_view
from coati_ext.cli.screen import table, write
from coati_ext.errors import ConfigError
from coati_ext.launch import installation
from coati_ext.launch.flag import says_off
from coati_ext.patching.defect import NOT_MEASURED
from coati_ext.patching.reliances import CHANGED
from coati_ext.report import PENDING, REFUSED

Facts = Dict[str, Any]
LAUNCHERS = ("torchrun", "colossalai")


def facts(options: Namespace) -> Tuple[int, Facts]:
    """The state of the installation, of coati, of the plan and, with ``--live``, of the defects.

    Raises:
        ConfigError: ``--live`` runs what ``--no-plugins`` must not run.
    """
    if options.live and options.no_plugins:
        raise ConfigError("--live measures with the plugins on: leave out --no-plugins or --live")
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
        found["live"], found["notes"] = _measure()
        wrong = [item for item in found["live"] if item["verdict"] == "wrong"]
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
    """What is wrong here, and what to type next."""
    plan = found["plan"]
    for name, error in plan["broken_plugins"].items():
        told = f"REFUSED, nothing patched. Plugin {name} is broken: {error.splitlines()[0]}"
        return told, "mend it, or take it out of `plugins` (coati-ext plugins shows where it is)"
    if plan["chatgpt"]:
        told = "NOT SUPPORTED. Here is chatgpt, the predecessor of coati (ColossalAI before v0.2.8)"
        return told, "update ColossalAI to v0.2.8 or later"
    if not plan["generation"]:
        told = f"NO COATI to patch. {plan['problem'].split(': ')[0]}"
        return told, "put the folder that holds coati/ on PYTHONPATH | without one: coati-ext demo"
    if found["versions"]["torch"] is None:
        return f"NO TORCH for {found['python']}, without which no coati runs", "pip install torch"
    refused = [item for item in [*plan["steps"], *plan["relies"]] if item["state"] == REFUSED]
    if refused:
        return _refusal(refused, plan)
    live = found.get("live", [])
    ran = _ran(live)
    left = [item for item in live if item["verdict"] == "wrong"]
    if left:
        told = f"DEFECTIVE. {len(left)} of {len(ran)} bugs are not fixed by the patches, such as "
        return f"{told}{left[0]['name']}: {left[0]['summary']}", "coati-ext doctor --live --json"
    return _state(found, _measured(live) if live else _counted(plan))


def _refusal(refused: List[Facts], plan: Facts) -> Tuple[str, str]:
    first = refused[0]
    edits = [item for item in plan["edits"] if item["target"] == first["target"]]
    told = f"{_name(first)} does not fit {first['patch']}: {first['reason']}"
    if edits:
        place = f"{'/'.join(Path(edits[0]['file']).parts[-2:])}:{edits[0]['line']}"
        told = f"{_name(first)} has your edit ({place}): {edits[0]['text']}"
    more = len({item["target"] for item in refused}) - 1
    names = sorted({item["patch"] for item in refused})
    ways = ["keep it: COATI_EXT_SET=" + ",".join(f"{name}.enabled=false" for name in names)]
    if plan["policy"] == "strict" and (edits or first in plan["relies"]):
        what = "overwrite it" if edits else "patch around it"
        ways.append(f"{what}: COATI_EXT_SET=policy=structural")
    ways.append("no patches: COATI_EXT=0")
    return f"REFUSED, nothing patched. {told}" + f" ({more} more below)" * bool(more), " | ".join(
        ways
    )


def _state(found: Facts, bugs: str) -> Tuple[str, str]:
    plan = found["plan"]
    edits = {(_name(item), item["line"]): None for item in plan["edits"]}
    lost = "".join(
        f" Your edit of {name} at line {line} will be overwritten." for name, line in edits
    )
    changed = sorted({_name(item) for item in plan["relies"] if item["state"] == CHANGED})
    if changed:
        lost += f" Your edit of {', '.join(changed)} stays, and the patches rely on upstream's: see"
        lost += " the warnings below."
    away = [gap for gap in found["gaps"] if gap["here"]]
    if away:
        told = f"NOT PATCHED, and COATI_EXT=1 would patch no process: {away[0]['why']}. "
        return told + bugs + lost, f"{away[0]['way_out']}, or call enable() in the script"
    if found["armed"]:
        told = f"READY. With {flag_text(found['flag'])}, importing coati switches the patches on. "
        then = 'start training as usual; rank 0 logs "coati-ext: ...". Undo: unset COATI_EXT'
        return told + bugs + lost, then
    there = [item["name"] for item in found["launchers"] if item["file"] and not item["problem"]]
    start = "torchrun" if "torchrun" in there else "python"
    live = "" if "live" in found else "    (see the bugs first: coati-ext doctor --live, 2 min)"
    return f"NOT PATCHED. {bugs}{lost}", f"COATI_EXT=1 {start} YOUR_SCRIPT.py{live}"


def _name(item: Facts) -> str:
    return str(item["target"].split(":")[1])


def _counted(plan: Facts) -> str:
    """How many bugs can be measured, and whether the functions that have them were recognised."""
    waiting = {item["target"] for item in plan["steps"] if item["state"] == PENDING}
    fixed = len({item["target"] for item in plan["steps"]} - waiting)
    unknown = len({item["target"] for item in plan["edits"]} & waiting)
    covered = sum(item["covered"] for item in plan["defects"])
    some = "" if covered == len(plan["defects"]) else f", {covered} of them covered"
    known = f"all {len(waiting)}" if not unknown else f"{len(waiting) - unknown} of {len(waiting)}"
    return (
        f"coati-ext checks this coati ({plan['generation']}) for {len(plan['defects'])} known RLHF "
        f"bugs{some}; "
        f"{known} functions to patch were recognised"
        + (f", and upstream has fixed {fixed} already." if fixed else ".")
    )


def _ran(live: List[Facts]) -> List[Facts]:
    return [item for item in live if item["verdict"] != NOT_MEASURED]


def _measured(live: List[Facts]) -> str:
    ran = _ran(live)
    shown = [item for item in ran if item["verdict_before"] == "wrong"]
    told = f"{len(shown)} of {len(ran)} bugs reproduced here, {len(ran)} right with patches on"
    reasons = sorted({item["after"] for item in live if item["verdict"] == NOT_MEASURED})
    if reasons:
        told += f", {len(live) - len(ran)} not measured ({'; '.join(reasons)})"
    for item in shown:
        if isinstance(item["before"], float):
            off, on = _number(item["before"]), _number(item["after"])
            return f"{told}. One, {item['name']}: {item['summary']}, {off} off and {on} on."
    return f"{told}."


def _measure() -> Tuple[List[Facts], List[str]]:
    """Each defect with the patches off and on, in two fresh processes; what plugins note there."""
    given = os.environ.get("COATI_EXT", "")
    runs = [
        Run("patches off", "0", ("off",)),
        Run("patches on ", "" if says_off(given) else given, ("on",)),
    ]
    off, on = side_by_side("coati_ext.cli.measure", runs)
    before = {item["name"]: item for item in off["defects"]}
    both = [
        {
            **item,
            "before": before[item["name"]]["value"],
            "after": item["value"],
            "verdict_before": before[item["name"]]["verdict"],
        }
        for item in on["defects"]
    ]
    return both, on["notes"]


def view(found: Facts) -> None:
    """Print :func:`facts`."""
    file = found["startup_file"]
    versions = [f"{name} {version or 'missing'}" for name, version in found["versions"].items()]
    write(f"verdict: {found['verdict']}", f"next: {found['next']}", "")
    write(
        table(
            ["", ""],
            [
                ["coati-ext", f"{found['version']}, {found['install']} at {found['location']}"],
                ["python", f"{found['python']}; {', '.join(versions)}"],
                ["start-up file", file or "none in a site directory"],
                *([["  its line", found["startup_line"]]] if file else []),
                *([["  why", found["startup_why"]]] if file else []),
                *[_gap_view(gap) for gap in found["gaps"]],
                *[[item["name"], _launcher_view(item)] for item in found["launchers"]],
                ["flag", flag_text(found["flag"])],
            ],
        ),
        "",
    )
    plan_view(found["plan"])
    if "live" in found:
        rows = [
            [
                *(item["name"], item["patch"], item["summary"]),
                *(_cell(item, key) for key in ("before", "after", "right", "tolerance")),
                _live_view(item),
            ]
            for item in found["live"]
        ]
        write("", table(["defect", "patch", "measured", "off", "on", "ideal", "within", ""], rows))
        write(*(f"note: {note}" for note in found["notes"]))


def _gap_view(gap: Facts) -> List[str]:
    if gap["here"]:
        return ["not patched", f"{gap['what']}: {gap['why']}"]
    return ["note", f"{gap['what']} would not be patched: {gap['why']}"]


def _launcher_view(item: Facts) -> str:
    if item["file"] is None:
        return "not on PATH"
    if item["python"] is None:
        return f"{item['file']}: cannot be told which Python runs it"
    state = (
        f"would not be patched: {item['problem']}" if item["problem"] else "patched by COATI_EXT=1"
    )
    return f"{item['file']}, under {item['python']}: {state}"


def _cell(item: Facts, key: str) -> str:
    return "" if item["verdict"] == NOT_MEASURED else _number(item[key])


def _live_view(item: Facts) -> str:
    if item["verdict"] == NOT_MEASURED:
        return f"{NOT_MEASURED}: {item['after']}"
    if item["verdict_before"] == item["verdict"] == "right":
        return "right, and right off too: this coati does not have it"
    return str(item["verdict"])


def _number(value: Any) -> str:
    """A number, or of an error its name; ``--json`` has its message."""
    return f"{value:.3g}" if isinstance(value, float) else str(value).split(":")[0]
