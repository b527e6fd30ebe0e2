"""The read-only commands: list, plan, explain, diff, config, plugins. None imports torch."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import os
import re
from argparse import Namespace
from typing import Any, Dict, Iterable, Iterator, List, Optional, Set, Tuple

from coati_ext import hookspecs
from coati_ext.cli.screen import table, write
from coati_ext.errors import OldCoatiError, UnknownNameError, nearest
from coati_ext.launch.flag import says_off
from coati_ext.patching.patch import GENERATIONS, Patch, Site
from coati_ext.patching.reliances import CHANGED
from coati_ext.patching.source import Function, dotted_file, with_helpers
from coati_ext.patching.steps import Step, edited, refusal
from coati_ext.patching.variants import STANDINS
from coati_ext.plan import Plan, make_plan
from coati_ext.plugins import CHOICES, HOOKS
from coati_ext.report import REFUSED
from coati_ext.settings import Value

Facts = Dict[str, Any]
NOT_LOADED = "not loaded"
NOT_CHECKED = "not checked: plugins not loaded"


def list_facts(options: Namespace) -> Tuple[int, Facts]:
    """Each patch: whether the settings switch it on and why, its generations and summary."""
    plan = make_plan(plugins=not options.no_plugins)
    rows = []
    for name, patch in sorted(plan.registry.patches.items()):
        value = plan.settings.enabled[name]
        sites = {item for site in patch.sites for item in site.generations}
        generations = sorted(sites or GENERATIONS)
        rows.append(
            {
                "name": name,
                "enabled": value.value,
                "origin": value.origin,
                "generations": generations,
                "summary": patch.summary,
            }
        )
    return 0, {"patches": rows, "flag": os.environ.get("COATI_EXT")}


def list_view(facts: Facts) -> None:
    """Print :func:`list_facts`."""
    rows = [
        [
            item["name"],
            "on" if item["enabled"] else "off",
            item["origin"],
            " ".join(item["generations"]),
            item["summary"],
        ]
        for item in facts["patches"]
    ]
    write(table(["patch", "with COATI_EXT=1", "set by", "generations", "summary"], rows))
    if says_off(facts["flag"] or ""):
        write("", f"{flag_text(facts['flag'])}, so no patch is on now.")


def flag_text(flag: Optional[str]) -> str:
    """What the environment says of ``COATI_EXT``."""
    return "COATI_EXT is not set" if not flag else f"COATI_EXT={flag}"


def plan_facts(options: Namespace) -> Tuple[int, Facts]:
    """The dry run: each target with its state and fingerprint, the choices, the digest."""
    plan = make_plan(plugins=not options.no_plugins)
    steps = [
        {
            "order": order,
            "patch": step.patch,
            "state": step.state,
            "target": step.site.target,
            "mode": step.site.mode,
            "new": step.site.new,
            "fingerprint": step.fingerprint,
            "reason": step.reason,
        }
        for order, step in enumerate(plan.steps, 1)
    ]
    relies = [
        {
            "patch": item.patch,
            "state": item.state,
            "target": item.reliance.target,
            "fingerprint": item.fingerprint,
            "reason": item.reason,
        }
        for item in plan.relies
    ]
    refused = refusal([*plan.steps, *plan.relies])
    problem = str(plan.missing or refused or "")
    found = {step.patch for step in plan.steps}
    absent = {  # such as that of a package which this coati has not
        name
        for name, patch in plan.registry.patches.items()
        if patch.sites and plan.settings.enabled[name].value and name not in found
    }
    facts = {
        "generation": plan.coati and plan.coati.generation,
        "coati": plan.coati and str(plan.coati.root),
        "policy": plan.settings.policy.value,
        "digest": None if plan.registry.unloaded else plan.digest,
        "steps": steps,
        "relies": relies,
        "without_sites": {
            name: plan.served(name)
            for name, patch in sorted(plan.registry.patches.items())
            if plan.settings.enabled[name].value and not patch.sites
        },
        "choices": _chosen(plan),
        "broken_plugins": {item.name: item.error for item in plan.registry.broken},
        "not_loaded": [item.name for item in plan.registry.unloaded],
        "not_checked": [item.name for item in plan.settings.unchecked],
        "leaves": [
            {"patch": name, "what": what}
            for name in sorted(found)
            for what in plan.registry.patches[name].leaves
        ],
        "problem": problem,
        "chatgpt": isinstance(plan.missing, OldCoatiError),
        "edits": [_edit_facts(step) for step in plan.steps if step.edit],
        "defects": [
            {
                "name": item.name,
                "patch": item.patch,
                "covered": bool(plan.settings.enabled[item.patch].value),
            }
            for item in plan.registry.defects
            if plan.coati is not None and plan.coati.generation in item.generations
            if item.patch not in absent
        ],
    }
    return int(bool(problem or plan.registry.broken)), facts


def _edit_facts(step: Step) -> Facts:
    edit, function = step.edit, step.function
    assert edit is not None
    assert function is not None
    return {
        "patch": step.patch,
        "target": step.site.target,
        "state": step.state,
        "file": function.file,
        "line": edit.first,
        "text": function.lines[edit.first - 1].strip(),
        "nearest": edit.nearest,
    }


def _chosen(plan: Plan) -> Dict[str, str]:
    """The implementation of each choice, those of plugins that are not loaded included."""
    named = {hook: f"{value.value} ({NOT_LOADED})" for hook, value in plan.settings.use.items()}
    return {**named, **{hook: item.name for hook, item in plan.choices.items()}}


def plan_view(facts: Facts) -> None:
    """Print :func:`plan_facts`."""
    write(
        f"coati {facts['coati'] or 'not found'}, generation {facts['generation'] or 'unknown'}, "
        f"policy {facts['policy']}, digest {facts['digest'] or 'unknown'}"
    )
    rows = [
        [
            str(item["order"]),
            item["target"].split(":")[1],  # without the module, to save width
            item["patch"],
            item["state"],
            item["mode"],
            "see below" if item["state"] == REFUSED else item["reason"],
        ]
        for item in facts["steps"]
    ]
    if rows:
        write(table(["", "target", "patch", "", "", "why"], rows))
    for name, served in facts["without_sites"].items():
        write(f"{name}: {served}")
    for hook, name in facts["choices"].items():
        write(f"{hook}: {name}")
    for item in facts["relies"]:
        if item["state"] == CHANGED:
            write(f"warning: {item['patch']}: {item['reason']}")
    rows = [[item["patch"], item["what"]] for item in facts["leaves"]]
    if rows:
        write(table(["patch", "known, and not repaired by it"], rows))
    for name, error in facts["broken_plugins"].items():
        write(f"broken plugin {name}: {error}")
    for name in facts["not_loaded"]:
        write(f"plugin {name}: {NOT_LOADED}, so what it offers and changes is not told here")
    for name in facts["not_checked"]:
        write(f"setting {name}: {NOT_CHECKED}")
    if facts["problem"]:
        write(facts["problem"])


def explain_facts(options: Namespace) -> Tuple[int, Facts]:
    """The patch or hook of that name.

    Raises:
        UnknownNameError: there is none.
    """
    plan = make_plan(plugins=not options.no_plugins)
    if options.name in HOOKS:
        return 0, _explain_hook(plan, options.name)
    return 0, _explain_patch(plan, _patch(plan, options.name, HOOKS))


def _patch(plan: Plan, name: str, others: List[str]) -> Patch:
    patches = plan.registry.patches
    if name not in patches:
        what = "patch or hook" if others else "patch"
        unloaded = f"; {NOT_CHECKED}" if plan.registry.unloaded else ""
        raise UnknownNameError(
            f"no {what} is called {name}{_nearest(name, [*patches, *others])} "
            f"(there are {', '.join([*sorted(patches), *others])}{unloaded})"
        )
    return patches[name]


def _nearest(name: str, known: List[str]) -> str:
    """As :func:`nearest`, and of a name that is like none, the one that it is least unlike."""
    found = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0)
    return nearest(name, known) or f"; the nearest is {found[0]}" * bool(found)


def _explain_patch(plan: Plan, patch: Patch) -> Facts:
    enabled = plan.settings.enabled[patch.name]
    options = []
    if patch.name in plan.registry.options:
        for item in dataclasses.fields(plan.registry.options[patch.name]):
            value = plan.settings.sections[patch.name][item.name]
            options.append(
                {
                    "name": item.name,
                    "value": value.value,
                    "in_force": _in_force(plan, patch.name, item.name),
                    "origin": value.origin,
                    "help": item.metadata.get("help", ""),
                }
            )
    sites = [
        {
            "target": site.target,
            "generations": list(site.generations),
            "mode": site.mode,
            "new": site.new,
            "fits": _releases(site.fits),
            "right": _releases(site.right),
        }
        for site in patch.sites
    ]
    return {
        "patch": patch.name,
        "summary": patch.summary,
        "enabled": enabled.value,
        "origin": enabled.origin,
        "changes": patch.changes,
        "reference": patch.reference,
        "leaves": list(patch.leaves),
        "options": options,
        "sites": sites,
        "served": None if patch.sites else plan.served(patch.name),
        "here": [
            {"target": step.site.target, "state": step.state, "reason": step.reason}
            for step in plan.steps
            if step.patch == patch.name
        ],
    }


def _releases(labels: Iterable[str]) -> List[str]:
    """Those of some variants' names that name releases: the stand-ins are nobody's coati."""
    return [label for label in labels if not label.startswith(STANDINS)]


def _in_force(plan: Plan, section: str, key: str) -> Any:
    """The value of an option, or what is in force where it is not set."""
    cls = plan.registry.options[section]
    unset = next(item for item in dataclasses.fields(cls) if item.name == key).metadata.get("unset")
    value = plan.settings.sections[section][key].value
    if value is not None or unset is None:
        return value
    return unset(plan.settings.instances(plan.registry.options)[section])


def _explain_hook(plan: Plan, hook: str) -> Facts:
    spec = getattr(hookspecs, hook)
    picked = plan.choices.get(hook)
    return {
        "hook": hook,
        "kind": "choice" if hook in CHOICES else "all are called",
        "signature": f"{hook}({', '.join(inspect.signature(spec).parameters)})",
        "help": inspect.getdoc(spec) or "",
        "implementations": [
            {"name": item.name, "plugin": item.plugin.name, "file": item.plugin.file}
            for item in plan.registry.implementations(hook)
        ],
        "picked": picked.name if picked else None,
        "picked_by": _reason(plan, hook),
    }


def _reason(plan: Plan, hook: str) -> str:
    if hook not in plan.choices:
        return ""
    if hook in plan.settings.use:
        return plan.settings.use[hook].origin
    return "the default" if plan.choices[hook].plugin.builtin else "the only plugin that offers it"


def explain_view(facts: Facts) -> None:
    """Print :func:`explain_facts`."""
    if "hook" in facts:
        write(f"{facts['signature']}   ({facts['kind']})", facts["help"])
        rows = [[item["name"], item["plugin"], item["file"]] for item in facts["implementations"]]
        write(table(["implementation", "plugin", "file"], rows))
        if facts["picked"]:
            write(f"in use: {facts['picked']}, chosen by {facts['picked_by']}")
        return
    state = "on" if facts["enabled"] else "off"
    write(f"{facts['patch']}: {facts['summary']}", f"{state}, set by {facts['origin']}")
    write(f"changes: {facts['changes'] or 'see coati-ext diff'}")
    if facts["reference"]:
        write(f"reference: {facts['reference']}")
    for what in facts["leaves"]:
        write(f"not repaired: {what}")
    for item in facts["options"]:
        value = item["in_force"] if item["value"] is None else repr(item["value"])
        write(f"option {item['name']} = {value} ({item['origin']}): {item['help']}")
    if facts["served"]:
        write(f"here: {facts['served']}")
        return
    rows = [
        [
            " ".join(site["generations"]),
            site["target"],
            site["mode"],
            "; ".join(site["fits"]),
            "; ".join(site["right"]),
        ]
        for site in facts["sites"]
    ]
    write(table(["", "target", "", "written for", "right already"], rows))
    rows = [[item["target"], item["state"], item["reason"]] for item in facts["here"]]
    write("", table(["here", "", "why"], rows) if rows else "here: nothing to change")


def diff_facts(options: Namespace) -> Tuple[int, Facts]:
    """The diff from each upstream function found here to the patch's function.

    Raises:
        UnknownNameError: no patch has the name.
        CoatiNotFoundError: there is no coati to compare with.
    """
    plan = make_plan(plugins=not options.no_plugins)
    patch = _patch(plan, options.name, [])
    if plan.missing:
        raise plan.missing
    assert plan.coati is not None
    diffs = []
    for site in patch.sites_in(plan.coati.generation):
        function = plan.coati.function(site.module, site.qualname)
        if function is not None:
            diffs.append({"target": site.target, "mode": site.mode, **_diff(site, function)})
    return 0, {"patch": patch.name, "generation": plan.coati.generation, "diffs": diffs}


def _diff(site: Site, function: Function) -> Facts:
    """The diff, in which ``!`` marks the lines that no release has.

    Upstream's own code is not at hand, but the fingerprint of each of its statements is.
    """
    module, name = site.new.split(":")
    file = dotted_file(module)
    new = [item.text for item in with_helpers(file, name)] if file is not None else []
    found = difflib.unified_diff(
        inspect.cleandoc("\n" + function.text).splitlines(),
        "\n\n".join(new).splitlines(),
        site.target,
        site.new + (" (calls the original)" if site.mode == "wrap" else ""),
        lineterm="",
        n=99,
    )
    lines = [line.rstrip() for line in found]
    edit = edited(site, function)
    if edit is None:
        return {"diff": "\n".join(lines), "edited": [], "nearest": None, "missing": 0}
    return {
        "diff": "\n".join(_marked(lines, {line - function.line + 1 for line in edit.lines})),
        "edited": list(edit.lines),
        "nearest": edit.nearest,
        "missing": edit.missing,
    }


def _marked(lines: Iterable[str], edits: Set[int]) -> Iterator[str]:
    """A unified diff, with ``!`` for ``-`` at these lines of its first side."""
    at = 0
    for line in lines:
        head = re.match(r"@@ -(\d+)", line)
        if head:
            at = int(head.group(1)) - 1
        elif at or not line.startswith(("---", "+++")):
            at += line[:1] in ("-", " ", "")
            line = f"!{line[1:]}" if line.startswith("-") and at in edits else line
        yield line


def diff_view(facts: Facts) -> None:
    """Print :func:`diff_facts`."""
    if not facts["diffs"]:
        write(f"{facts['patch']} changes no function of a coati of {facts['generation']}")
    for item in facts["diffs"]:
        if item["nearest"]:
            missing = f"; {item['missing']} statements of its are missing" * bool(item["missing"])
            told = f"! marks what is in no release; the nearest is {item['nearest']}{missing}"
            write(f"{item['target']}: {told}")
        write(item["diff"], "")


def config_facts(options: Namespace) -> Tuple[int, Facts]:
    """Every resolved setting and its source."""
    plan = make_plan(plugins=not options.no_plugins)
    settings = plan.settings
    unchecked = {item.name: item for item in settings.unchecked}
    values = {"policy": settings.policy, "rank_check": settings.rank_check}
    values.update({f"{name}.enabled": value for name, value in settings.enabled.items()})
    for section, items in settings.sections.items():
        values.update({f"{section}.{key}": value for key, value in items.items()})
    values.update({f"use.{hook}": value for hook, value in settings.use.items()})
    in_force = {
        f"{section}.{key}": _in_force(plan, section, key)
        for section, items in settings.sections.items()
        for key in items
    }
    values.update({name: Value(item.value, item.origin) for name, item in unchecked.items()})
    rows = [
        {
            "name": name,
            "value": value.value,
            "in_force": in_force.get(name, value.value),
            "origin": value.origin + f" ({NOT_CHECKED})" * (name in unchecked),
        }
        for name, value in sorted(values.items())
    ]
    rows += [
        {"name": "plugins", "value": name, "in_force": name, "origin": origin}
        for name, origin, _ in plan.layers.plugins
    ]
    return 0, {"settings": rows}


def config_view(facts: Facts) -> None:
    """Print :func:`config_facts`."""
    rows = [[item["name"], str(item["in_force"]), item["origin"]] for item in facts["settings"]]
    write(table(["setting", "value", "set by"], rows))


def plugins_facts(options: Namespace) -> Tuple[int, Facts]:
    """Every plugin, loaded or broken; the status is 1 when one is broken.

    Raises:
        UnknownNameError: ``--hook`` names no hook.
    """
    hook = options.hook
    if hook and hook not in HOOKS:
        raise UnknownNameError(f"no hook is called {hook}{nearest(hook, HOOKS)}")
    plan = make_plan(plugins=not options.no_plugins)
    rows = [
        {
            "name": plugin.name,
            "source": plugin.source,
            "state": "broken" if plugin.error else "loaded" if plugin.loaded else NOT_LOADED,
            "hooks": list(plugin.hooks),
            "file": plugin.file,
            "error": plugin.error,
        }
        for plugin in plan.registry.plugins
        if not hook or hook in plugin.hooks or not plugin.loaded
    ]
    return int(bool(plan.registry.broken)), {"plugins": rows}


def plugins_view(facts: Facts) -> None:
    """Print :func:`plugins_facts`."""
    rows = [
        [item["name"], item["state"], item["source"], " ".join(item["hooks"])]
        for item in facts["plugins"]
    ]
    write(table(["plugin", "", "from", "hooks"], rows))
    for item in facts["plugins"]:
        if item["error"]:
            write(f"{item['name']}: {item['error']}")
