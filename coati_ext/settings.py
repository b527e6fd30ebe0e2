"""Settings: what the layers say, checked; every value remembers where it came from.

There are two steps, because plugins declare options of their own. ``coati_ext.layers`` reads the
sources, unchecked. :func:`resolve` checks them against the options of the loaded plugins and
reports all problems at once.
"""

from __future__ import annotations

import dataclasses
import math
import typing
import warnings
from dataclasses import dataclass
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from coati_ext.errors import ConfigError, nearest, shown, shown_name
from coati_ext.launch.flag import OFF, ON
from coati_ext.layers import (
    FLAG,
    FROZEN,
    ConfigArgument,
    Entry,
    Layers,
    collect,
    freeze,
    from_text,
    is_list_of_text,
    only,
)
from coati_ext.patching.patch import Patch
from coati_ext.patching.steps import POLICIES

__all__ = [
    "FROZEN",
    "ConfigArgument",
    "Entry",
    "Layers",
    "Settings",
    "Value",
    "collect",
    "freeze",
    "from_text",
    "only",
    "option",
    "resolve",
]

RANK_CHECK = 60.0
_LONGEST_RANK_CHECK = 1e6  # seconds; stores count milliseconds in 32 bits
_TOP = ("plugins", "policy", "rank_check")
_TOLD = 50  # problems in one message; finding the nearest name of each takes time


def option(default: Any, help: str, **limits: Any) -> Any:
    """A field of an options class: its default, its help and its allowed values.

    Args:
        default: the value if the configuration does not set one.
        help: one sentence for ``coati-ext explain``.
        limits: ``choices`` (a tuple of values), ``minimum``, ``maximum``, ``chooses`` (the choice
            hook whose implementation the value names), ``formerly`` (the present names of its
            implementations by those that they had before), ``without`` (the implementation while
            the patch of this section is off), ``defaults`` (other defaults, by generation of
            coati), or ``unset`` (what is in force where the value is ``None``: a function of the
            options that returns a text).
    """
    return dataclasses.field(default=default, metadata={"help": help, **limits})


@dataclass(frozen=True)
class Value:
    """A resolved setting and where it came from."""

    value: Any
    origin: str = "default"


@dataclass(frozen=True)
class Settings:
    """The resolved settings."""

    policy: Value
    rank_check: Value
    """Timeout in seconds for comparing the plans of all ranks; 0 skips the comparison."""
    enabled: Mapping[str, Value]
    """Whether each patch is on."""
    sections: Mapping[str, Mapping[str, Value]]
    """The options of each section."""
    use: Mapping[str, Value]
    """The implementation that the configuration names for a choice hook."""
    unchecked: Tuple[Entry, ...] = ()
    """Settings that may be of plugins which are not loaded."""

    def instances(self, classes: Mapping[str, type]) -> Dict[str, Any]:
        """The options of each section as an instance of its class."""
        return {
            section: classes[section](**{key: item.value for key, item in values.items()})
            for section, values in self.sections.items()
        }


def resolve(
    layers: Layers,
    patches: Mapping[str, Patch],
    options: Mapping[str, type],
    choices: Mapping[str, Sequence[str]],
    generation: Optional[str] = None,
    unloaded: bool = False,
) -> Settings:
    """Check the layers against the known patches and options, and return the settings.

    Args:
        layers: from :func:`collect`.
        patches: the patches that exist.
        options: the options class of each section.
        choices: the implementations of each choice hook.
        generation: of the coati found; some defaults depend on it.
        unloaded: whether there are plugins that are not loaded; names that are not known may be
            theirs, so the settings that use these are put aside.

    Raises:
        ConfigError: lists every problem with its place, the expected value and the nearest match.
    """
    draft = _Draft(patches, options, choices, generation, unloaded)
    problems = list(layers.problems[:_TOLD])
    for entry in layers.entries:
        problem = draft.set(entry)
        if problem:
            problems.append(f"{problem}   ({entry.origin})")
        if len(problems) >= _TOLD:
            break
    problems += draft.choose()
    if problems:
        told = "\n".join(f"  {problem}" for problem in problems)
        count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
        if len(problems) >= _TOLD:
            count = f"{_TOLD} problems and perhaps more"
        raise ConfigError(
            f"{count} in the coati-ext settings\n{told}\n"
            f"Known patches and sections: {', '.join(draft.known)}"
        )
    return Settings(
        draft.policy,
        draft.rank_check,
        draft.enabled,
        draft.sections,
        draft.use,
        tuple(draft.unchecked),
    )


class _Draft:
    """The settings while the entries are merged."""

    def __init__(
        self,
        patches: Mapping[str, Patch],
        options: Mapping[str, type],
        choices: Mapping[str, Sequence[str]],
        generation: Optional[str],
        unloaded: bool,
    ) -> None:
        self.unloaded = unloaded
        self.unchecked: List[Entry] = []
        self.options = options
        self.choices = choices
        self.known = sorted({*patches, *options})
        self.policy = Value(POLICIES[0])
        self.rank_check = Value(RANK_CHECK)
        self.enabled = {name: Value(patch.default) for name, patch in patches.items()}
        self.sections = {
            section: {item.name: _default(item, generation) for item in dataclasses.fields(cls)}
            for section, cls in options.items()
        }
        self.use: Dict[str, Value] = {}
        fields = [item.metadata for cls in options.values() for item in dataclasses.fields(cls)]
        self.renamed: Dict[Tuple[str, str], str] = {
            (item["chooses"], before): name
            for item in fields
            for before, name in item.get("formerly", {}).items()
        }

    def set(self, entry: Entry) -> str:
        """Apply one entry. Return its problem, or an empty string."""
        if entry.section == FLAG:
            return self._set_only(entry)
        if not entry.section:
            return self._set_top(entry)
        if entry.section == "use":
            return self._set_use(entry) if entry.key else ""
        if entry.section not in self.known:
            if entry.section in _TOP:
                return f"{entry.section}: wants a value, not a section"
            match = nearest(entry.section, [*self.known, "use"])
            problem = f"{shown_name(entry.section)}: no such patch or section{match}"
            return self._unknown(entry, problem)
        if not entry.key:  # an empty section
            return ""
        if entry.key == "enabled" and entry.section in self.enabled:
            value, wanted = _convert(entry.value, bool)
            if wanted:
                return f"{entry.name} = {shown(entry.value)}: wants {wanted}"
            self.enabled[entry.section] = Value(value, entry.origin)
            return ""
        return self._set_option(entry)

    def choose(self) -> List[str]:
        """Copy each option that names a choice's implementation to ``[use]``; return conflicts."""
        problems = []
        for section, cls in self.options.items():
            for item in dataclasses.fields(cls):
                hook = item.metadata.get("chooses")
                given = self.sections[section][item.name]
                if hook is None or given.origin == "default":
                    continue
                other = self.use.setdefault(hook, given)
                if other.value != given.value:
                    problems.append(
                        f"{section}.{item.name} = {given.value!r} ({given.origin}) and use.{hook} "
                        f"= {other.value!r} ({other.origin}) name two implementations of {hook}"
                    )
        return problems

    def _set_only(self, entry: Entry) -> str:
        self.enabled = {name: Value(name in entry.value, entry.origin) for name in self.enabled}
        if not entry.value:
            return "no patch is named: wants 1, 0 or names of patches"
        unknown = [name for name in entry.value if name not in self.enabled]
        told = [f"{shown_name(n)}: no such patch{nearest(n, self.enabled)}" for n in unknown[:5]]
        more = f"; and {len(unknown) - 5} more" * (len(unknown) > 5)
        return self._unknown(entry, "; ".join(told) + more)

    def _set_top(self, entry: Entry) -> str:
        told = f"{entry.key} = {shown(entry.value)}"
        if entry.key == "policy":
            if not isinstance(entry.value, str) or entry.value not in POLICIES:
                return f"{told}: wants {_or(POLICIES)}{_nearest(entry.value, POLICIES)}"
            self.policy = Value(entry.value, entry.origin)
        elif entry.key == "rank_check":
            seconds, wanted = _convert(entry.value, float)
            if wanted or not 0 <= seconds <= _LONGEST_RANK_CHECK:
                return (
                    f"{told}: wants seconds, or 0 to compare nothing, at most "
                    f"{_LONGEST_RANK_CHECK:.0f}"
                )
            self.rank_check = Value(seconds, entry.origin)
        elif entry.key == "plugins":
            if not is_list_of_text(entry.value):
                return f"{told}: wants a list of modules or .py files"
        elif entry.key in self.known:
            return f"{told}: wants a section, as in {entry.key}.enabled = true"
        elif entry.key == "use":
            return f"{told}: wants a section, as in use.pool_reward = 'NAME'"
        else:
            match = nearest(entry.key, [*self.known, *_TOP, "use"])
            return f"{shown_name(entry.key)}: no such patch or setting{match}"
        return ""

    def _set_use(self, entry: Entry) -> str:
        if entry.key not in self.choices:
            match = nearest(entry.key, self.choices)
            return f"use.{shown_name(entry.key)}: no such choice hook{match}"
        name = self._present_name(entry, entry.key)
        if name not in self.choices[entry.key]:
            problem = self._no_implementation(entry, entry.key)
            if not isinstance(name, str) or self._unknown(entry, problem):
                return problem
        self.use[entry.key] = Value(name, entry.origin)
        return ""

    def _set_option(self, entry: Entry) -> str:
        values = self.sections.get(entry.section, {})
        if entry.key not in values:
            match = nearest(entry.key, [*values, "enabled"])
            return f"{shown_name(entry.name)}: no such option{match}"
        cls = self.options[entry.section]
        limits = next(i for i in dataclasses.fields(cls) if i.name == entry.key).metadata
        value, wanted = _convert(entry.value, typing.get_type_hints(cls)[entry.key])
        if not wanted and "chooses" in limits:
            value = self._present_name(entry, limits["chooses"])
            if value not in self.choices[limits["chooses"]]:
                problem = self._no_implementation(entry, limits["chooses"])
                wanted = self._unknown(entry, problem)
                if wanted:
                    return wanted
        else:
            wanted = wanted + _span(limits) if wanted else _outside(value, limits)
        if wanted:
            return f"{entry.name} = {shown(entry.value)}: wants {wanted}"
        values[entry.key] = Value(value, entry.origin)
        return ""

    def _present_name(self, entry: Entry, hook: str) -> Any:
        """The implementation that an entry names, by its present name."""
        name = entry.value
        if not isinstance(name, str) or name in self.choices[hook]:
            return name
        present = self.renamed.get((hook, name), name)
        if present != name:
            told = f"{entry.name} = {name!r} ({entry.origin}): it is called {present!r} now"
            warnings.warn(
                f"{told}; the old name goes with version 1.0", FutureWarning, stacklevel=2
            )
        return present

    def _unknown(self, entry: Entry, problem: str) -> str:
        """The problem, unless the name that is not known may be of a plugin that is not loaded."""
        if not (problem and self.unloaded):
            return problem
        self.unchecked.append(entry)
        return ""

    def _no_implementation(self, entry: Entry, hook: str) -> str:
        names = self.choices[hook]
        return (
            f"{entry.name} = {shown(entry.value)}: no plugin offers {hook} under that name"
            f"{_nearest(entry.value, names)} (there are {', '.join(names)})"
        )


def _default(item: dataclasses.Field[Any], generation: Optional[str]) -> Value:
    return Value(item.metadata.get("defaults", {}).get(generation, item.default))


def _outside(value: Any, limits: Mapping[str, Any]) -> str:
    """What was expected of a value of the right type, or an empty string if it is valid."""
    if "choices" in limits and value not in limits["choices"]:
        return _or(limits["choices"]) + _nearest(value, map(str, limits["choices"]))
    low, high = limits.get("minimum"), limits.get("maximum")
    if (low is not None and value < low) or (high is not None and value > high):
        return f"a number{_span(limits)}"
    return ""


def _span(limits: Mapping[str, Any]) -> str:
    low, high = limits.get("minimum"), limits.get("maximum")
    span = [f"at least {low}"] * (low is not None) + [f"at most {high}"] * (high is not None)
    return f" {' and '.join(span)}" if span else ""


def _convert(value: Any, kind: Any) -> Tuple[Any, str]:
    """The value converted to the type, and what was expected if that fails. Text is parsed."""
    if type(None) in typing.get_args(kind):  # None means "not set" and only comes as a default
        kind = typing.get_args(kind)[0]
    if kind is bool:
        if isinstance(value, str) and value.lower() in (*ON, *OFF):
            return value.lower() in ON, ""
        return value, "" if isinstance(value, bool) else "true or false"
    if kind in (int, float):
        return _number(value, kind)
    if kind is str:
        return value, "" if isinstance(value, str) else "a text"
    return value, "" if is_list_of_text(value) else "a list of texts"


def _number(value: Any, kind: Any) -> Tuple[Any, str]:
    """As :func:`_convert`, for numbers: finite ones, and whole ones of 64 bits, as in TOML."""
    wanted = "a whole number" if kind is int else "a number"
    if isinstance(value, bool) or not isinstance(value, (str, int, kind)):
        return value, wanted
    try:
        number = kind(value)
    except OverflowError:  # a whole number that is no float
        number = math.inf
    except ValueError:
        return value, wanted
    if kind is int and not -(2**63) <= number < 2**63:
        return value, "a whole number of at most 64 bits"
    return (number, "") if math.isfinite(number) else (value, "a finite number")


def _or(values: Sequence[Any]) -> str:
    return " or ".join(repr(value) for value in values)


def _nearest(value: Any, known: Iterable[str]) -> str:
    return nearest(value, known) if isinstance(value, str) else ""
