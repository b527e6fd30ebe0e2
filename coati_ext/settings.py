"""Settings from arguments, environment and files; every value remembers where it came from.

There are two steps, because plugins declare options of their own. :func:`collect` reads the
sources, called layers, unchecked. :func:`resolve` checks them against the options of the loaded
plugins and reports all problems at once. :func:`freeze` encodes the layers for processes that
cannot read them, such as workers on another node or in another working directory.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import re
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from coati_ext._toml import parse_toml
from coati_ext.errors import ConfigError, nearest
from coati_ext.launch.flag import OFF, ON, says_off
from coati_ext.patching.patch import Patch
from coati_ext.patching.steps import POLICIES

FILE = "coati-ext.toml"
FROZEN = "COATI_EXT_FROZEN"
RANK_CHECK = 60.0
_TOP = ("plugins", "policy", "rank_check")
_FLAG = "COATI_EXT"
_FROZEN_MARK = ", frozen"
ConfigArgument = Union[None, str, "os.PathLike[str]", Mapping[str, Any]]


def option(default: Any, help: str, **limits: Any) -> Any:
    """A field of an options class: its default, its help and its allowed values.

    Args:
        default: the value if the configuration does not set one.
        help: one sentence for ``coati-ext explain``.
        limits: ``choices`` (a tuple of values), ``minimum``, ``maximum``, ``chooses`` (the choice
            hook whose implementation the value names), ``defaults`` (other defaults, by
            generation of coati), or ``unset`` (what is in force where the value is ``None``: a
            function of the options that returns a text).
    """
    return dataclasses.field(default=default, metadata={"help": help, **limits})


@dataclass(frozen=True)
class Entry:
    """One setting as written in its source."""

    section: str
    key: str
    value: Any
    origin: str
    folder: Optional[Path] = None

    @property
    def name(self) -> str:
        """``section.key``, or the key alone at the top level."""
        return f"{self.section}.{self.key}" if self.section else self.key


@dataclass(frozen=True)
class Value:
    """A resolved setting and where it came from."""

    value: Any
    origin: str = "default"


@dataclass(frozen=True)
class Layers:
    """The entries of all sources, lowest precedence first."""

    entries: Tuple[Entry, ...]
    killed: bool = False
    """Whether ``COATI_EXT`` is set to off."""
    problems: Tuple[str, ...] = ()

    @property
    def plugins(self) -> List[Tuple[str, str, Optional[Path]]]:
        """The configured plugins: name, origin, and the folder for relative file names."""
        named: Dict[str, Tuple[str, str, Optional[Path]]] = {}
        for entry in self.entries:
            if entry.name == "plugins" and _is_list_of_text(entry.value):
                named.update({item: (item, entry.origin, entry.folder) for item in entry.value})
        return list(named.values())


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

    def instances(self, classes: Mapping[str, type]) -> Dict[str, Any]:
        """The options of each section as an instance of its class."""
        return {
            section: classes[section](**{key: item.value for key, item in values.items()})
            for section, values in self.sections.items()
        }


def collect(config: ConfigArgument = None, options: Sequence[Entry] = ()) -> Layers:
    """Read every layer: ``pyproject.toml``, ``coati-ext.toml``, the environment, the argument.

    ``COATI_EXT_FROZEN``, if set, replaces all layers below the argument.

    Args:
        config: as for :func:`coati_ext.enable`.
        options: from ``coati-ext run``; they rank between the environment and the argument.

    Raises:
        ConfigError: a file is missing, unreadable or not TOML, or the frozen layers are damaged.
    """
    flag = os.environ.get("COATI_EXT", "").strip()
    chosen = os.environ.get("COATI_EXT_CONFIG")
    frozen = os.environ.get(FROZEN)
    problems: List[str] = []
    entries: List[Entry] = []
    if isinstance(config, (str, os.PathLike)):
        argument = _from_file(Path(config), named_by="enable()")
    elif config is not None and not isinstance(config, Mapping):
        kind = type(config).__name__
        raise ConfigError(f"enable() wants None, a path or a mapping of settings, got a {kind}")
    else:
        argument = _from_mapping(config or {}, "enable()")
        if not frozen:
            named_by = "COATI_EXT_CONFIG" if chosen else ""
            entries += _from_file(Path("pyproject.toml"))
            entries += _from_file(Path(chosen or FILE), named_by=named_by)
    if frozen:
        entries = _thaw(frozen)
    else:
        if not says_off(flag) and flag.lower() not in ON:
            entries.append(only(flag.split(","), "environment COATI_EXT"))
        settings = os.environ.get("COATI_EXT_SET", "").split(",")
        entries += from_text(settings, "environment COATI_EXT_SET", problems)
    killed = bool(flag) and says_off(flag)
    return Layers((*entries, *options, *argument), killed, tuple(problems))


def only(names: Sequence[str], origin: str) -> Entry:
    """An entry that switches on exactly these patches."""
    return Entry(_FLAG, "only", [name.strip() for name in names if name.strip()], origin)


def freeze(layers: Layers) -> str:
    """The layers as URL-safe base64 of JSON, which shells and launchers pass on unchanged.

    Plugin files become absolute paths, because the reader may have another working directory.
    """
    rows = [
        (entry.section, entry.key, _absolute(entry), entry.origin.replace(_FROZEN_MARK, ""))
        for entry in layers.entries
    ]
    text = json.dumps(rows, separators=(",", ":"), sort_keys=True, default=str)
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _absolute(entry: Entry) -> Any:
    if entry.name != "plugins" or not _is_list_of_text(entry.value):
        return entry.value
    folder = entry.folder or Path.cwd()
    return [str(folder / name) if name.endswith(".py") else name for name in entry.value]


def _thaw(text: str) -> List[Entry]:
    try:
        padded = text + "=" * (-len(text) % 4)
        rows = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        return [
            Entry(str(section), str(key), value, f"{origin}{_FROZEN_MARK}")
            for section, key, value, origin in rows
        ]
    except (ValueError, TypeError) as error:
        start = text if len(text) <= 20 else f"{text[:20]}..."
        raise ConfigError(
            f"{FROZEN}={start} is damaged ({error}): it wants what `coati-ext run` or "
            "coati_ext.launch.ray_runtime_env() wrote. Start the job with `coati-ext run -- "
            f"COMMAND` anew, or unset {FROZEN} to read the files and variables here"
        ) from error


def resolve(
    layers: Layers,
    patches: Mapping[str, Patch],
    options: Mapping[str, type],
    choices: Mapping[str, Sequence[str]],
    generation: Optional[str] = None,
) -> Settings:
    """Check the layers against the known patches and options, and return the settings.

    Args:
        layers: from :func:`collect`.
        patches: the patches that exist.
        options: the options class of each section.
        choices: the implementations of each choice hook.
        generation: of the coati found; some defaults depend on it.

    Raises:
        ConfigError: lists every problem with its place, the expected value and the nearest match.
    """
    draft = _Draft(patches, options, choices, generation)
    problems = list(layers.problems)
    for entry in layers.entries:
        problem = draft.set(entry)
        if problem:
            problems.append(f"{problem}   ({entry.origin})")
    problems += draft.choose()
    if problems:
        told = "\n".join(f"  {problem}" for problem in problems)
        count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
        raise ConfigError(
            f"{count} in the coati-ext settings\n{told}\n"
            f"Known patches and sections: {', '.join(draft.known)}"
        )
    return Settings(draft.policy, draft.rank_check, draft.enabled, draft.sections, draft.use)


class _Draft:
    """The settings while the entries are merged."""

    def __init__(
        self,
        patches: Mapping[str, Patch],
        options: Mapping[str, type],
        choices: Mapping[str, Sequence[str]],
        generation: Optional[str],
    ) -> None:
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

    def set(self, entry: Entry) -> str:
        """Apply one entry. Return its problem, or an empty string."""
        if entry.section == _FLAG:
            return self._set_only(entry)
        if not entry.section:
            return self._set_top(entry)
        if entry.section == "use":
            return self._set_use(entry) if entry.key else ""
        if entry.section not in self.known:
            match = nearest(entry.section, [*self.known, "use"])
            return f"{entry.section}: no such patch or section{match}"
        if not entry.key:  # an empty section
            return ""
        if entry.key == "enabled" and entry.section in self.enabled:
            value, wanted = _convert(entry.value, bool)
            if wanted:
                return f"{entry.name} = {entry.value!r}: wants {wanted}"
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
        unknown = [name for name in entry.value if name not in self.enabled]
        return "; ".join(f"{name}: no such patch{nearest(name, self.enabled)}" for name in unknown)

    def _set_top(self, entry: Entry) -> str:
        if entry.key == "policy":
            if entry.value not in POLICIES:
                return f"policy = {entry.value!r}: wants {_or(POLICIES)}"
            self.policy = Value(entry.value, entry.origin)
        elif entry.key == "rank_check":
            seconds, wanted = _convert(entry.value, float)
            if wanted or seconds < 0:
                return f"rank_check = {entry.value!r}: wants seconds, or 0 to compare nothing"
            self.rank_check = Value(seconds, entry.origin)
        elif entry.key == "plugins":
            if not _is_list_of_text(entry.value):
                return f"plugins = {entry.value!r}: wants a list of modules or .py files"
        elif entry.key in self.known:
            return (
                f"{entry.key} = {entry.value!r}: wants a section, as in {entry.key}.enabled = true"
            )
        else:
            match = nearest(entry.key, [*self.known, *_TOP, "use"])
            return f"{entry.key}: no such patch or setting{match}"
        return ""

    def _set_use(self, entry: Entry) -> str:
        if entry.key not in self.choices:
            return f"use.{entry.key}: no such choice hook{nearest(entry.key, self.choices)}"
        if entry.value not in self.choices[entry.key]:
            return self._no_implementation(entry, entry.key)
        self.use[entry.key] = Value(entry.value, entry.origin)
        return ""

    def _set_option(self, entry: Entry) -> str:
        values = self.sections.get(entry.section, {})
        if entry.key not in values:
            return f"{entry.name}: no such option{nearest(entry.key, [*values, 'enabled'])}"
        cls = self.options[entry.section]
        limits = next(i for i in dataclasses.fields(cls) if i.name == entry.key).metadata
        value, wanted = _convert(entry.value, typing.get_type_hints(cls)[entry.key])
        if not wanted and "chooses" in limits:
            if value not in self.choices[limits["chooses"]]:
                return self._no_implementation(entry, limits["chooses"])
        elif not wanted:
            wanted = _outside(value, limits)
        if wanted:
            return f"{entry.name} = {entry.value!r}: wants {wanted}"
        values[entry.key] = Value(value, entry.origin)
        return ""

    def _no_implementation(self, entry: Entry, hook: str) -> str:
        names = self.choices[hook]
        return (
            f"{entry.name} = {entry.value!r}: no plugin offers {hook} under that name"
            f"{nearest(str(entry.value), names)} (there are {', '.join(names)})"
        )


def _default(item: dataclasses.Field[Any], generation: Optional[str]) -> Value:
    return Value(item.metadata.get("defaults", {}).get(generation, item.default))


def _outside(value: Any, limits: Mapping[str, Any]) -> str:
    """What was expected of a value of the right type, or an empty string if it is valid."""
    if "choices" in limits and value not in limits["choices"]:
        return _or(limits["choices"]) + nearest(str(value), map(str, limits["choices"]))
    low, high = limits.get("minimum"), limits.get("maximum")
    if (low is not None and value < low) or (high is not None and value > high):
        span = [f"at least {low}"] * (low is not None) + [f"at most {high}"] * (high is not None)
        return f"a number {' and '.join(span)}"
    return ""


def _convert(value: Any, kind: Any) -> Tuple[Any, str]:
    """The value converted to the type, and what was expected if that fails. Text is parsed."""
    if type(None) in typing.get_args(kind):  # None means "not set" and only comes as a default
        kind = typing.get_args(kind)[0]
    if kind is bool:
        if isinstance(value, str) and value.lower() in (*ON, *OFF):
            return value.lower() in ON, ""
        return value, "" if isinstance(value, bool) else "true or false"
    if kind in (int, float):
        if isinstance(value, str):
            try:
                return kind(value), ""
            except ValueError:
                pass
        elif isinstance(value, (int, kind)) and not isinstance(value, bool):
            return kind(value), ""
        return value, "a whole number" if kind is int else "a number"
    if kind is str:
        return value, "" if isinstance(value, str) else "a text"
    return value, "" if _is_list_of_text(value) else "a list of texts"


def _is_list_of_text(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)


def _or(values: Sequence[Any]) -> str:
    return " or ".join(repr(value) for value in values)


def _from_mapping(
    content: Mapping[str, Any],
    origin: str,
    text: str = "",
    folder: Optional[Path] = None,
    prefix: str = "",
) -> List[Entry]:
    entries = []
    for key, value in content.items():
        if isinstance(value, Mapping):
            inner = [(key, name, item) for name, item in (value or {"": None}).items()]
        else:
            inner = [("", key, value)]
        for section, leaf, item in inner:
            line = _line(text, prefix, section, leaf)
            place = f"{origin} line {line}" if line else origin
            entries.append(Entry(section, leaf, item, place, folder))
    return entries


def _from_file(file: Path, named_by: str = "") -> List[Entry]:
    if not named_by and not file.is_file():
        return []
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        source = f", named by {named_by}" if named_by else ""
        raise ConfigError(f"cannot read {file}{source}: {error}") from error
    try:
        content: Mapping[str, Any] = parse_toml(text)
    except ValueError as error:
        raise ConfigError(f"{file} is not TOML: {error}") from error
    prefix = ""
    if file.name == "pyproject.toml":
        content, prefix = content.get("tool", {}).get("coati-ext", {}), "tool.coati-ext"
    if not isinstance(content, Mapping):
        raise ConfigError(f"{file}: {prefix} = {content!r}: wants a table of settings")
    origin = f"enable() {file}" if named_by == "enable()" else str(file)
    return _from_mapping(content, origin, text, file.resolve().parent, prefix)


def _line(text: str, *names: str) -> int:
    """The approximate line of a key or header in a TOML text, or 0; for messages."""
    wanted = ".".join(filter(None, names))
    current = ""
    for number, line in enumerate(text.splitlines(), 1):
        opened = re.match(r"\s*\[\s*([^\[\]]+?)\s*\]", line)
        written = re.match(r"\s*[\"']?([\w.-]+?)[\"']?\s*=", line)
        if opened:
            place = current = opened.group(1).replace('"', "").replace(" ", "")
        elif written:
            place = ".".join(filter(None, (current, written.group(1))))
        else:
            continue
        if place == wanted:
            return number
    return 0


def from_text(settings: Sequence[str], origin: str, problems: List[str]) -> List[Entry]:
    """The entries of texts such as ``section.key=value``."""
    entries = []
    for part in filter(None, (item.strip() for item in settings)):
        name, equals, value = part.partition("=")
        section, _, key = name.strip().rpartition(".")
        if not equals or not key:
            problems.append(f"{part}: wants section.key=value   ({origin})")
            continue
        plugins = not section and key == "plugins"
        entries.append(Entry(section, key, [value.strip()] if plugins else value.strip(), origin))
    return entries
