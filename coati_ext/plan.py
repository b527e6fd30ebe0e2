"""The plan: settings, plugins, and what each patch would change in the coati found here.

Making a plan changes nothing and imports neither coati nor torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from coati_ext import __version__
from coati_ext.errors import CoatiNotFoundError, ConfigError, PluginError
from coati_ext.patching.patch import Patch
from coati_ext.patching.reliances import CHANGED, Reading, read_reliances
from coati_ext.patching.source import Coati, find_coati
from coati_ext.patching.steps import Step, in_order, plan_steps, refusal
from coati_ext.plugins import CHOICES, Implementation, Registry, load, plugin_hashes
from coati_ext.report import APPLIED, OFF, PENDING, REFUSED, Report, Row
from coati_ext.settings import ConfigArgument, Entry, Layers, Settings, Value, collect, resolve


@dataclass(frozen=True)
class Plan:
    """Everything that ``enable`` needs to know before it patches."""

    layers: Layers
    registry: Registry
    settings: Settings
    choices: Mapping[str, Implementation]
    """The implementation picked for each choice hook (a hook with one active implementation)."""
    coati: Optional[Coati]
    steps: Tuple[Step, ...]
    missing: Optional[CoatiNotFoundError] = None
    """The error if no coati was found."""
    relies: Tuple[Reading, ...] = ()
    """What was found of the functions that the patches rely on."""

    @cached_property  # so that later edits of plugin files do not change it
    def digest(self) -> str:
        """A hash of everything that affects the numbers: equal plans have equal digests."""
        content = {
            "version": __version__,
            "generation": self.coati and self.coati.generation,
            "steps": [(s.patch, s.site.target, s.state, s.fingerprint) for s in self.steps],
            "relies": [(r.patch, r.reliance.target, r.fingerprint) for r in self.relies],
            "options": {
                section: {key: item.value for key, item in values.items()}
                for section, values in self.settings.sections.items()
            },
            "choices": {hook: item.name for hook, item in self.choices.items()},
            "plugins": plugin_hashes(self.registry.plugins),
        }
        text = json.dumps(content, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def functions(self) -> Dict[str, Callable[..., Any]]:
        """The implementation of each choice hook, as a plain function of all its arguments."""
        return {hook: self.registry.resolve(hook, item) for hook, item in self.choices.items()}

    @property
    def changed(self) -> Tuple[str, ...]:
        """A sentence for each edited function that a patch relies on."""
        return tuple(
            f"{item.patch}: {item.reason}" for item in self.relies if item.state == CHANGED
        )

    def served(self, patch: str) -> str:
        """What a patch without sites does: its options pick implementations of choices."""
        section = self.registry.options.get(patch)
        hooks = [
            item.metadata["chooses"]
            for item in (dataclasses.fields(section) if section else ())
            if "chooses" in item.metadata
        ]
        picked = [f"{hook} by {self.choices[hook].name}" for hook in hooks if hook in self.choices]
        serves = f"; it serves {', '.join(picked)}" if picked else ""
        return f"changes no upstream function{serves}"

    def report(
        self, applied: Tuple[str, ...] = (), notes: Tuple[str, ...] = (), in_force: bool = False
    ) -> Report:
        """The plan as a report.

        Args:
            applied: the targets that count as patched.
            notes: further remarks.
            in_force: whether the picked implementations are called.
        """
        rows = []
        for step in self.steps:
            done = step.state == PENDING and step.site.target in applied
            rows.append(
                Row(step.patch, APPLIED if done else step.state, step.site.target, step.reason)
            )
        rows += [
            Row(item.patch, REFUSED, item.reliance.target, item.reason)
            for item in self.relies
            if item.state == REFUSED
        ]
        planned = {row.name for row in rows}
        for name, value in self.settings.enabled.items():
            if name in planned:
                continue
            if not value.value:
                rows.append(Row(name, OFF, "", f"switched off by {value.origin}"))
            elif self.missing or self.registry.patches[name].sites:
                reason = str(self.missing or "nothing to change in this coati")
                if self.missing or value.origin != "default":  # else nobody has asked for it
                    rows.append(Row(name, OFF, "", reason))
            else:
                rows.append(Row(name, APPLIED if in_force else PENDING, "", self.served(name)))
        generation = self.coati.generation if self.coati else None
        return Report(generation, tuple(rows), self.digest, (*self.changed, *notes))

    def check(self) -> None:
        """Raise if this plan cannot be used for training, and warn of edits that it relies on.

        Raises:
            PluginError: a plugin is broken.
            CoatiNotFoundError: there is no coati.
            RefusedError: a patch does not fit.
        """
        if self.registry.broken:
            told = "\n".join(
                f"  {plugin.name} ({plugin.source}): {plugin.error}"
                for plugin in self.registry.broken
            )
            raise PluginError(f"coati-ext will not train with broken plugins:\n{told}")
        if self.missing:
            raise self.missing
        refused = refusal([*self.steps, *self.relies])
        if refused:
            raise refused
        if self.changed:
            warnings.warn("\n".join(self.changed), stacklevel=2)


def make_plan(
    config: ConfigArgument = None, options: Sequence[Entry] = (), plugins: bool = True
) -> Plan:
    """Read the settings, load the plugins and compare upstream's source with the patches.

    Args:
        config: as for :func:`coati_ext.enable`.
        options: settings from the command line of ``coati-ext run``.
        plugins: whether to load the plugins that are not built in. A plan without them is for
            looking at: what they would add is missing, and settings of theirs are not checked.

    Raises:
        ConfigError: the settings are wrong, or two plugins implement a choice hook and the
            settings name neither.
        RefusedError: two patches change the same function and declare no valid order.
    """
    layers = collect(config, options)
    registry = load(layers.plugins, run=plugins)
    offers = {hook: registry.implementations(hook) for hook in CHOICES}
    names = {hook: [item.name for item in items] for hook, items in offers.items()}
    coati, missing = _find()
    generation = coati.generation if coati else None
    try:
        settings = resolve(
            layers, registry.patches, registry.options, names, generation, bool(registry.unloaded)
        )
    except ConfigError as error:
        broken = "\n".join(f"  {item.name}: {item.error}" for item in registry.broken)
        if not broken:
            raise
        raise ConfigError(f"{error}\nBroken plugins, which may be why:\n{broken}") from None
    choices = _pick(offers, settings, registry)
    settings = _as_picked(settings, choices, registry)
    patches = in_order(registry.patches)
    if coati is None:
        return Plan(layers, registry, settings, choices, None, (), missing)
    on = [patch for patch in patches if settings.enabled[patch.name].value]
    _require_parents(on)
    steps = plan_steps(on, coati, settings.policy.value)
    relies = read_reliances(on, coati, settings.policy.value)
    return Plan(layers, registry, settings, choices, coati, steps, relies=relies)


def _find() -> Tuple[Optional[Coati], Optional[CoatiNotFoundError]]:
    try:
        return find_coati(), None
    except CoatiNotFoundError as error:
        return None, error


def _require_parents(on: List[Patch]) -> None:
    names = {patch.name for patch in on}
    for patch in on:
        # A patch whose sites have no fits wraps any implementation.
        parents = patch.after if any(site.fits for site in patch.sites) else ()
        lacking = [name for name in (*parents, *patch.needs) if name not in names]
        if lacking:
            raise ConfigError(
                f"patch {patch.name} builds upon {lacking[0]}, which is off: switch it on "
                f"({lacking[0]}.enabled = true) or {patch.name} off"
            )


def _pick(
    offers: Mapping[str, List[Implementation]], settings: Settings, registry: Registry
) -> Dict[str, Implementation]:
    """One implementation of each choice hook: the named one, else the user's only one, else ours.

    The order of entry points is not used, because it differs between machines.
    """
    picked = {}
    for hook, items in offers.items():
        by_name = {item.name: item for item in items}
        if len(by_name) < len(items):
            names = [item.name for item in items]
            twice = next(name for name in names if names.count(name) > 1)
            told = " and ".join(item.told(hook) for item in items if item.name == twice)
            raise ConfigError(
                f"two plugins offer {hook} under the name {twice}: {told}. Rename one of these "
                f"functions, and mark it by @hookimpl(specname={hook!r})"
            )
        mine = [item for item in items if not item.plugin.builtin]
        if hook in settings.use:
            if settings.use[hook].value in by_name:  # else it is of a plugin that is not loaded
                picked[hook] = by_name[settings.use[hook].value]
        elif len(mine) > 1:
            raise ConfigError(
                f"{len(mine)} plugins offer {hook}: {', '.join(item.name for item in mine)}. Name "
                f'the one to use: [use] {hook} = "{mine[0].name}"'
            )
        else:
            picked[hook] = (
                mine[0] if mine else by_name[_default_of(hook, items, settings, registry)]
            )
    return picked


def _default_of(
    hook: str, items: List[Implementation], settings: Settings, registry: Registry
) -> str:
    """The built-in implementation named by the hook's option, or the only built-in one."""
    for section, item in _choosing(hook, registry):
        if "without" in item.metadata and not settings.enabled[section].value:
            return str(item.metadata["without"])
        return str(settings.sections[section][item.name].value)
    if len(items) == 1:
        return items[0].name
    raise ConfigError(f"no option chooses {hook}, which {len(items)} plugins offer")


def _as_picked(
    settings: Settings, choices: Mapping[str, Implementation], registry: Registry
) -> Settings:
    """The settings, with each option that chooses an implementation set to the one picked."""
    sections = {section: dict(values) for section, values in settings.sections.items()}
    for hook, item in choices.items():
        for section, option in _choosing(hook, registry):
            if sections[section][option.name].value != item.name:
                origin = settings.use[hook].origin if hook in settings.use else item.plugin.source
                sections[section][option.name] = Value(item.name, origin)
    return dataclasses.replace(settings, sections=sections)


def _choosing(hook: str, registry: Registry) -> List[Tuple[str, dataclasses.Field[Any]]]:
    """The options, each with its section, whose value names an implementation of the hook."""
    return [
        (section, item)
        for section, cls in registry.options.items()
        for item in dataclasses.fields(cls)
        if item.metadata.get("chooses") == hook
    ]
