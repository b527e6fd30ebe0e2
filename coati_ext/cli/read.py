"""The read-only commands: list, plan, explain, diff, config, plugins. None imports torch."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from argparse import Namespace
from typing import Any, Dict, List, Tuple

from coati_ext import hookspecs
from coati_ext.cli.screen import table, write
from coati_ext.errors import UnknownNameError, nearest
from coati_ext.patching.patch import Patch, Site
from coati_ext.patching.reliances import CHANGED
from coati_ext.patching.source import dotted_file, with_helpers
from coati_ext.patching.steps import refusal
from coati_ext.plan import Plan, make_plan
from coati_ext.plugins import CHOICES, HOOKS
from coati_ext.report import REFUSED

Facts = Dict[str, Any]


def list_facts(options: Namespace) -> Tuple[int, Facts]:
    """Each patch: on or off and why, its generations and summary."""
    plan = make_plan()
    rows = []
    for name, patch in sorted(plan.registry.patches.items()):
        value = plan.settings.enabled[name]
        generations = sorted({item for site in patch.sites for item in site.generations})
        rows.append(
            {
                "name": name,
                "enabled": value.value,
                "origin": value.origin,
                "generations": generations,
                "summary": patch.summary,
            }
        )
    return 0, {"patches": rows}


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
    write(table(["patch", "", "set by", "generations", "summary"], rows))


def plan_facts(options: Namespace) -> Tuple[int, Facts]:
    """The dry run: each target with its state and fingerprint, the choices, the digest."""
    plan = make_plan()
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
    facts = {
        "generation": plan.coati and plan.coati.generation,
        "coati": plan.coati and str(plan.coati.root),
        "policy": plan.settings.policy.value,
        "digest": plan.digest,
        "steps": steps,
        "relies": relies,
        "choices": {hook: item.name for hook, item in plan.choices.items()},
        "broken_plugins": {item.name: item.error for item in plan.registry.broken},
        "problem": problem,
    }
    return int(bool(problem or plan.registry.broken)), facts


def plan_view(facts: Facts) -> None:
    """Print :func:`plan_facts`."""
    write(
        f"coati {facts['coati'] or 'not found'}, generation {facts['generation'] or 'unknown'}, "
        f"policy {facts['policy']}, digest {facts['digest']}"
    )
    rows = [
        [
            str(item["order"]),
            item["patch"],
            "fits" if item["state"] == "pending" else item["state"],
            item["mode"],
            item["target"].split(":")[1],  # without the module, to save width
            "see below" if item["state"] == REFUSED else item["reason"],
        ]
        for item in facts["steps"]
    ]
    if rows:
        write(table(["", "patch", "", "", "target", "why"], rows))
    for hook, name in facts["choices"].items():
        write(f"{hook}: {name}")
    for item in facts["relies"]:
        if item["state"] == CHANGED:
            write(f"warning: {item['patch']}: {item['reason']}")
    for name, error in facts["broken_plugins"].items():
        write(f"broken plugin {name}: {error}")
    if facts["problem"]:
        write(facts["problem"])


def explain_facts(options: Namespace) -> Tuple[int, Facts]:
    """The patch or hook of that name.

    Raises:
        UnknownNameError: there is none.
    """
    plan = make_plan()
    if options.name in HOOKS:
        return 0, _explain_hook(plan, options.name)
    return 0, _explain_patch(plan, _patch(plan, options.name, HOOKS))


def _patch(plan: Plan, name: str, others: List[str]) -> Patch:
    patches = plan.registry.patches
    if name not in patches:
        what = "patch or hook" if others else "patch"
        raise UnknownNameError(
            f"no {what} is called {name}{nearest(name, [*patches, *others])} "
            f"(there are {', '.join([*sorted(patches), *others])})"
        )
    return patches[name]


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
            "fits": list(site.fits),
            "right": list(site.right),
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
        "options": options,
        "sites": sites,
        "here": [
            {"target": step.site.target, "state": step.state, "reason": step.reason}
            for step in plan.steps
            if step.patch == patch.name
        ],
    }


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
    for item in facts["options"]:
        write(f"option {item['name']} = {item['value']!r} ({item['origin']}): {item['help']}")
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
    for item in facts["here"]:
        write(f"here: {item['target']} {item['state']}, {item['reason']}")


def diff_facts(options: Namespace) -> Tuple[int, Facts]:
    """The diff from each upstream function found here to the patch's function.

    Raises:
        UnknownNameError: no patch has the name.
        CoatiNotFoundError: there is no coati to compare with.
    """
    plan = make_plan()
    patch = _patch(plan, options.name, [])
    if plan.missing:
        raise plan.missing
    assert plan.coati is not None
    diffs = []
    for site in patch.sites_in(plan.coati.generation):
        function = plan.coati.function(site.module, site.qualname)
        if function is not None:
            diffs.append(
                {"target": site.target, "mode": site.mode, "diff": _diff(site, function.text)}
            )
    return 0, {"patch": patch.name, "generation": plan.coati.generation, "diffs": diffs}


def _diff(site: Site, upstream: str) -> str:
    module, name = site.new.split(":")
    file = dotted_file(module)
    new = [item.text for item in with_helpers(file, name)] if file is not None else []
    lines = difflib.unified_diff(
        inspect.cleandoc("\n" + upstream).splitlines(),
        "\n\n".join(new).splitlines(),
        site.target,
        site.new + (" (calls the original)" if site.mode == "wrap" else ""),
        lineterm="",
        n=99,
    )
    return "\n".join(lines)


def diff_view(facts: Facts) -> None:
    """Print :func:`diff_facts`."""
    for item in facts["diffs"]:
        write(item["diff"], "")


def config_facts(options: Namespace) -> Tuple[int, Facts]:
    """Every resolved setting and its source."""
    plan = make_plan()
    settings = plan.settings
    values = {"policy": settings.policy, "rank_check": settings.rank_check}
    values.update({f"{name}.enabled": value for name, value in settings.enabled.items()})
    for section, items in settings.sections.items():
        values.update({f"{section}.{key}": value for key, value in items.items()})
    values.update({f"use.{hook}": value for hook, value in settings.use.items()})
    rows = [
        {"name": name, "value": value.value, "origin": value.origin}
        for name, value in sorted(values.items())
    ]
    rows += [
        {"name": "plugins", "value": name, "origin": origin}
        for name, origin, _ in plan.layers.plugins
    ]
    return 0, {"settings": rows}


def config_view(facts: Facts) -> None:
    """Print :func:`config_facts`."""
    rows = [[item["name"], str(item["value"]), item["origin"]] for item in facts["settings"]]
    write(table(["setting", "value", "set by"], rows))


def plugins_facts(options: Namespace) -> Tuple[int, Facts]:
    """Every plugin, loaded or broken; the status is 1 when one is broken.

    Raises:
        UnknownNameError: ``--hook`` names no hook.
    """
    hook = options.hook
    if hook and hook not in HOOKS:
        raise UnknownNameError(f"no hook is called {hook}{nearest(hook, HOOKS)}")
    plan = make_plan()
    rows = [
        {
            "name": plugin.name,
            "source": plugin.source,
            "state": "broken" if plugin.error else "loaded",
            "hooks": list(plugin.hooks),
            "file": plugin.file,
            "error": plugin.error,
        }
        for plugin in plan.registry.plugins
        if not hook or hook in plugin.hooks
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
