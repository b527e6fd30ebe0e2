"""Where settings come from: arguments, environment and files, each a layer, read unchecked.

:func:`collect` reads them, lowest precedence first. :func:`freeze` encodes them for processes that
cannot read them, such as workers on another node or in another working directory.
``coati_ext.settings`` checks them against the options of the loaded plugins.
"""

from __future__ import annotations

import base64
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from coati_ext._files import read_text
from coati_ext._json import parse_json
from coati_ext._toml import parse_toml
from coati_ext.errors import ConfigError, shown, shown_name
from coati_ext.launch.flag import ON, kills, says_off

FILE = "coati-ext.toml"
PROJECT = "pyproject.toml"
FROZEN = "COATI_EXT_FROZEN"
FLAG = "COATI_EXT"
"""The environment variable, and the section of the entry that :func:`only` makes of it."""
_FROZEN_MARK = ", frozen"
# Bytes. A parser of TOML takes the square of the length of a dotted key. What other tools keep in
# pyproject.toml can be more.
_MOST = 1 << 16
_MOST_PATH = 1000  # letters of a path in a message: the end of one tells it
_MOST_PROJECT = 1 << 20
_QUOTES = {ord(quote): None for quote in "\"'"}
ConfigArgument = Union[None, str, "os.PathLike[str]", Mapping[str, Any]]


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
            if entry.name == "plugins" and is_list_of_text(entry.value):
                named.update({item: (item, entry.origin, entry.folder) for item in entry.value})
        return list(named.values())


def is_list_of_text(value: Any) -> bool:
    """Whether a value is a list or tuple of texts."""
    return isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)


def collect(config: ConfigArgument = None, options: Sequence[Entry] = ()) -> Layers:
    """Read every layer: ``pyproject.toml``, ``coati-ext.toml``, the environment, the argument.

    ``COATI_EXT_FROZEN``, if set, replaces all layers below the argument.

    Args:
        config: as for :func:`coati_ext.enable`.
        options: from ``coati-ext run``; they rank between the environment and the argument.

    Raises:
        ConfigError: a file is missing, unreadable or not TOML, or the frozen layers are damaged.
    """
    flag = os.environ.get(FLAG, "").strip()
    chosen = os.environ.get("COATI_EXT_CONFIG")
    frozen = os.environ.get(FROZEN)
    problems: List[str] = []
    entries: List[Entry] = []
    if isinstance(config, (str, os.PathLike)):
        argument = _from_file(os.fsdecode(config), problems, named_by="enable()")
    elif config is not None and not isinstance(config, Mapping):
        kind = type(config).__name__
        raise ConfigError(f"enable() wants None, a path or a mapping of settings, got a {kind}")
    else:
        argument = _from_mapping(config or {}, "enable()", problems)
        if not frozen:
            named_by = "COATI_EXT_CONFIG" if chosen else ""
            entries += _from_file(PROJECT, problems)
            entries += _from_file(chosen or FILE, problems, named_by=named_by)
    if frozen:
        entries = _thaw(frozen)
    else:
        if not says_off(flag) and flag.lower() not in ON:
            entries.append(only(flag.split(","), f"environment {FLAG}"))
        settings = os.environ.get("COATI_EXT_SET", "").split(",")
        entries += from_text(settings, "environment COATI_EXT_SET", problems)
    return Layers((*entries, *options, *argument), kills(flag), tuple(problems))


def only(names: Sequence[str], origin: str) -> Entry:
    """An entry that switches on exactly these patches."""
    return Entry(FLAG, "only", [name.strip() for name in names if name.strip()], origin)


def from_text(settings: Sequence[str], origin: str, problems: List[str]) -> List[Entry]:
    """The entries of texts such as ``section.key=value``."""
    entries = []
    for part in filter(None, (item.strip() for item in settings)):
        name, equals, value = part.partition("=")
        section, dot, key = name.strip().rpartition(".")
        if not equals or not key or (dot and not section) or section == FLAG:
            problems.append(f"{shown_name(part)}: wants section.key=value   ({origin})")
            continue
        plugins = not section and key == "plugins"
        entries.append(Entry(section, key, [value.strip()] if plugins else value.strip(), origin))
    return entries


def _from_mapping(
    content: Mapping[str, Any],
    origin: str,
    problems: List[str],
    lines: Mapping[str, int] = {},
    folder: Optional[Path] = None,
    prefix: str = "",
) -> List[Entry]:
    def place(*names: str) -> str:
        line = lines.get(".".join(filter(None, (prefix, *names))))
        return f"{origin} line {line}" if line else origin

    entries = []
    for key, value in content.items():
        table = isinstance(value, Mapping)
        if not _is_name(key) or (table and key == FLAG):
            problems.append(f"{shown(key)}: wants the name of a setting or section   ({origin})")
        elif not table:
            entries.append(Entry("", key, value, place(key), folder))
        elif not value:  # an empty section
            entries.append(Entry(key, "", None, place(key), folder))
        else:
            for leaf, item in value.items():
                if _is_name(leaf):
                    entries.append(Entry(key, leaf, item, place(key, leaf), folder))
                else:
                    told = f"{shown(leaf)} in {shown_name(key)}: wants the name of a setting"
                    problems.append(f"{told}   ({place(key)})")
    return entries


def _is_name(key: object) -> bool:
    return isinstance(key, str) and bool(key)


def _from_file(name: str, problems: List[str], named_by: str = "") -> List[Entry]:
    file = Path(name)
    name = shown_name(str(file), _MOST_PATH)
    told = f"{name}, named by {named_by}" if named_by else name
    project = file.name == PROJECT
    try:
        text = read_text(file, _MOST_PROJECT if project else _MOST)
    except FileNotFoundError as error:
        if not named_by:
            return []
        raise ConfigError(f"cannot read {told}: there is no such file") from error
    except ValueError as error:
        raise ConfigError(f"cannot read {told}: {error}") from error
    try:
        content: Any = parse_toml(text)
    except ValueError as error:
        raise ConfigError(f"{name} is not TOML: {error}") from error
    prefix = ""
    if project:
        for key in ("tool", "coati-ext"):
            prefix = f"{prefix}.{key}" if prefix else key
            content = content.get(key, {})
            if not isinstance(content, Mapping):
                raise ConfigError(f"{name}: {prefix} = {shown(content)}: wants a table of settings")
    origin = f"enable() {name}" if named_by == "enable()" else name
    return _from_mapping(content, origin, problems, _lines(text), file.resolve().parent, prefix)


def _lines(text: str) -> Dict[str, int]:
    """The approximate line of each key and header of a TOML text, by dotted name; for messages."""
    found: Dict[str, int] = {}
    table = ""
    for number, line in enumerate(text.split("\n"), 1):
        bare = line.strip().translate(_QUOTES)
        if bare.startswith("["):
            name = table = bare.lstrip("[").partition("]")[0].strip()
        else:
            key, equals, _ = bare.partition("=")
            if not equals:
                continue
            name = ".".join(filter(None, (table, key.strip())))
        found.setdefault(name, number)
    return found


def freeze(layers: Layers) -> str:
    """The layers as URL-safe base64 of JSON, which shells and launchers pass on unchanged.

    Plugin files, and values that begin with ``./`` or ``../``, become absolute paths, because the
    reader may have another working directory.

    Raises:
        ConfigError: a value cannot be encoded.
    """
    rows = [
        (entry.section, entry.key, _absolute(entry), entry.origin.replace(_FROZEN_MARK, ""))
        for entry in layers.entries
    ]
    try:
        text = json.dumps(rows, separators=(",", ":"), sort_keys=True, default=str)
    except (ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"these settings cannot be handed to other processes: {error}") from error
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _absolute(entry: Entry) -> Any:
    folder = entry.folder or Path.cwd()
    if entry.name == "plugins" and is_list_of_text(entry.value):
        return [str(folder / name) if name.endswith(".py") else name for name in entry.value]
    if isinstance(entry.value, str) and entry.value.startswith(("./", "../")):
        return str(folder / entry.value)
    return entry.value


def _thaw(text: str) -> List[Entry]:
    try:
        padded = text + "=" * (-len(text) % 4)
        rows = parse_json(base64.b64decode(padded, altchars=b"-_", validate=True).decode())
        if not isinstance(rows, list):
            raise ValueError(f"{shown(rows)} is no list of settings")
        return [_thawed(row) for row in rows]
    except ValueError as error:
        start = text if len(text) <= 20 else f"{text[:20]}..."
        raise ConfigError(
            f"{FROZEN}={start} is damaged ({error}): it wants what `coati-ext run` or "
            "coati_ext.launch.ray_runtime_env() wrote. Start the job with `coati-ext run -- "
            f"COMMAND` anew, or unset {FROZEN} to read the files and variables here"
        ) from error


def _thawed(row: Any) -> Entry:
    """One entry, as :func:`freeze` wrote it.

    Raises:
        ValueError: it did not.
    """
    if isinstance(row, list) and len(row) == 4:
        section, key, value, origin = row
        texts = all(isinstance(item, str) for item in (section, key, origin))
        if texts and len(origin) < 5000 and (section != FLAG or is_list_of_text(value)):
            return Entry(section, key, value, f"{origin}{_FROZEN_MARK}")
    raise ValueError(f"{shown(row)} is no setting")
