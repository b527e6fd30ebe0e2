"""Find and load all plugins, built-in ones and others, in the same way.

Every process loads its plugins anew from the configuration; a manager is never shared or pickled.
A plugin that fails to load is recorded with its error: the command line shows it and continues, a
training run refuses to start. That holds for every way to fail, ``sys.exit()`` included; an
interrupt by the user while a plugin loads cannot be told from one that the plugin raised, and stops
a training run just so.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
import traceback
import typing
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import (
    Any,
    Callable,
    Container,
    Dict,
    Iterable,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
)

import pluggy

from coati_ext import hookspecs, implementations
from coati_ext.errors import CoatiExtError, PluginError
from coati_ext.implementations import CHOICES, HOOKS, arguments_of, definition, hooks_of, taking_all
from coati_ext.patching.defect import Defect
from coati_ext.patching.patch import Patch

__all__ = ["CHOICES", "HOOKS", "Implementation", "Plugin", "Registry", "load", "plugin_hashes"]

GROUP = "coati_ext"
_texts: Dict[str, Tuple[Path, bytes]] = {}


@dataclass(frozen=True)
class Plugin:
    """A plugin that was found, whether or not it could be loaded."""

    name: str
    source: str
    """``built-in``, ``entry point of DISTRIBUTION``, or where the configuration names it."""
    file: str = ""
    hooks: Tuple[str, ...] = ()
    error: str = ""
    """Why it failed to load, with file and line; empty if it loaded."""
    loaded: bool = True
    """False if it was only looked at, by ``--no-plugins``."""

    @property
    def builtin(self) -> bool:
        """Whether it came with coati-ext."""
        return self.source == "built-in"


@dataclass(frozen=True)
class Implementation:
    """One implementation of a hook."""

    name: str
    """The plugin's name, or the function's name if it differs from the hook's (``specname``)."""
    plugin: Plugin
    function: Callable[..., Any]

    def told(self, hook: str) -> str:
        """The hook, the plugin, and the file and line of the function, for messages."""
        return f"{hook} of plugin {self.plugin.name} ({definition(self.function)})"


@dataclass
class Registry:
    """The loaded plugins and everything they registered."""

    manager: pluggy.PluginManager
    plugins: List[Plugin] = field(default_factory=list)
    patches: Dict[str, Patch] = field(default_factory=dict)
    options: Dict[str, type] = field(default_factory=dict)
    defects: List[Defect] = field(default_factory=list)

    @property
    def broken(self) -> List[Plugin]:
        """The plugins that could not be loaded."""
        return [plugin for plugin in self.plugins if plugin.error]

    @property
    def unloaded(self) -> List[Plugin]:
        """The plugins that were only looked at."""
        return [plugin for plugin in self.plugins if not plugin.loaded]

    def implementations(self, hook: str) -> List[Implementation]:
        """Every implementation of a hook, built-ins first."""
        plugins = {plugin.name: plugin for plugin in self.plugins if not plugin.error}
        found = []
        for item in getattr(self.manager.hook, hook).get_hookimpls():
            own = item.function.__name__
            name = item.plugin_name if own in (hook, "<lambda>") else own
            found.append(Implementation(name, plugins[item.plugin_name], item.function))
        return sorted(found, key=lambda item: (not item.plugin.builtin, item.name))

    def resolve(self, hook: str, implementation: Implementation) -> Callable[..., Any]:
        """An implementation as a plain function that takes all arguments of the hook.

        What a user's one returns is checked, and its errors name it; see ``coati_ext.results``.
        """
        function = taking_all(implementation.function, hook)
        if implementation.plugin.builtin:
            return function
        told = implementation.told(hook)

        def checked(*arguments: Any) -> Any:
            from coati_ext.results import check, versions

            before = versions(arguments)
            try:
                result = function(*arguments)
            except Exception as error:
                if _passes(error):
                    raise
                raise PluginError(f"{told} failed: {_words(error)}") from error
            if versions(arguments) != before:
                raise PluginError(f"{told} has changed an argument in place: expected new tensors")
            check(hook, told, result, arguments)
            return result

        return checked

    def observer(self, hook: str, off: Container[str] = ()) -> Callable[..., None]:
        """A function with the hook's keyword arguments that calls every implementation.

        A built-in plugin has the name of its patch; those of patches that are ``off`` are not
        called.
        """
        names = arguments_of(hook)
        calls = [
            (item.told(hook), taking_all(item.function, hook))
            for item in self.implementations(hook)
            if not (item.plugin.builtin and item.plugin.name in off)
        ]

        def call_all(**arguments: Any) -> None:
            for told, function in calls:
                before = _tensors_of(arguments.get("experience"))
                try:
                    returned = function(*[arguments[name] for name in names])
                except Exception as error:
                    raise PluginError(f"{told} failed: {_words(error)}") from error
                if inspect.isawaitable(returned):
                    raise PluginError(f"{told} returned {returned!r}, which nothing awaits")
                _require_same(told, arguments.get("experience"), before)

        return call_all


class _Hooks:
    """The hooks of one plugin, which pluggy gets instead of the plugin: it need not search it."""

    def __init__(self, plugin: object, hooks: Mapping[str, Callable[..., Any]]) -> None:
        vars(self).update(hooks)
        vars(self)["_plugin"] = plugin


def _words(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # its own __str__
        return type(error).__name__


def _passes(error: Exception) -> bool:
    """Whether an error keeps its type: ours, and those that others than the user wait for.

    Trainers catch a lack of memory; a private type is control flow, as torch's checkpointing has.
    """
    name = type(error).__name__
    lacks_memory = isinstance(error, MemoryError) or "OutOfMemory" in name
    return isinstance(error, CoatiExtError) or lacks_memory or name.startswith("_")


def _tensors_of(experience: Any) -> Dict[str, Tuple[Any, int]]:
    """The tensors of an experience by field, and how often each was changed in place."""
    return {
        name: (item, item._version)
        for name, item in getattr(experience, "__dict__", {}).items()
        if hasattr(item, "is_inference") and not item.is_inference()
    }


def _require_same(told: str, experience: Any, before: Mapping[str, Tuple[Any, int]]) -> None:
    for name, (item, version) in before.items():
        same: bool = getattr(experience, name, None) is item
        if not same or item._version != version:
            raise PluginError(
                f"{told} has changed experience.{name}: an observer reads the experience and "
                "changes nothing"
            )


def load(named: Sequence[Tuple[str, str, Optional[Path]]], run: bool = True) -> Registry:
    """Load the built-ins, the installed entry points and the plugins named in the configuration.

    Args:
        named: ``(plugin, origin, folder)`` for each configured plugin: a module name, or a ``.py``
            file relative to the folder of the configuration file.
        run: whether to load the plugins that are not built in; else they are only listed.
    """
    manager = pluggy.PluginManager("coati_ext")
    manager.add_hookspecs(hookspecs)
    registry = Registry(manager)

    def add(name: str, source: str, importer: Callable[[], object], file: str = "") -> None:
        if run:
            _add(registry, name, source, importer)
        else:
            registry.plugins.append(Plugin(name, source, file, loaded=False))

    patches = importlib.import_module("coati_ext.patches")
    for name in sorted(item.name for item in pkgutil.iter_modules(patches.__path__) if item.ispkg):
        _add(registry, name, "built-in", _importer(f"coati_ext.patches.{name}"))
    for point in sorted(_entry_points(), key=lambda point: point.name):
        distribution = getattr(getattr(point, "dist", None), "name", None)
        source = f"entry point {point.value}" + (f" of {distribution}" if distribution else "")
        add(point.name, source, point.load)
    for name, origin, folder in named:
        if name.endswith(".py"):
            file = (folder or Path.cwd()) / name
            add(file.stem, origin, _file_importer(file), str(file))
        else:
            add(name, origin, _importer(name))
    return registry


def plugin_hashes(plugins: Iterable[Plugin]) -> Dict[str, str]:
    """A hash of the source file of each plugin that is not built in."""
    return {
        plugin.name: hashlib.sha256(Path(plugin.file).read_bytes()).hexdigest()[:12]
        for plugin in plugins
        if not plugin.builtin and not plugin.error and Path(plugin.file).is_file()
    }


def _entry_points() -> List[EntryPoint]:
    if sys.version_info >= (3, 10):
        return list(entry_points(group=GROUP))
    # Editable installs can list one distribution twice on old Pythons.
    return list({point.name: point for point in entry_points().get(GROUP, ())}.values())


def _importer(module: str) -> Callable[[], object]:
    return lambda: importlib.import_module(module)


def _file_importer(file: Path) -> Callable[[], object]:
    def load_file() -> ModuleType:
        if not file.is_file():
            raise FileNotFoundError(f"no plugin file {file}")
        text = file.read_bytes()
        name = f"coati_ext_plugin_{file.stem}"
        loaded = sys.modules.get(name)
        # Every plan loads its plugins; an unchanged one must stay the same module object.
        if loaded is not None and _texts.get(name) == (file, text):
            return loaded
        spec = importlib.util.spec_from_file_location(name, str(file))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name], _texts[name] = module, (file, text)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            sys.modules.pop(name, None)
            raise
        return module

    return load_file


def _add(registry: Registry, name: str, source: str, importer: Callable[[], object]) -> None:
    """Load one plugin and run its registration hooks, or record why it is broken."""
    manager = registry.manager
    loaded: Any = None
    found: Mapping[str, Tuple[str, Callable[..., Any]]] = {}
    hooks: Optional[_Hooks] = None
    error = ""
    trial = Registry(manager)  # merged only if the whole plugin is valid
    try:
        if manager.has_plugin(name):
            raise PluginError(f"two plugins are called {name}")
        loaded = importer()
        known = [own for own, item in manager.list_name_plugin() if vars(item)["_plugin"] is loaded]
        if known:
            raise PluginError(f"it is loaded already, as plugin {known[0]}")
        found = hooks_of(loaded)
        hooks = _Hooks(loaded, {own: function for own, (_, function) in found.items()})
        manager.register(hooks, name)
        _collect(found.values(), registry, trial)
    except BaseException as problem:  # a plugin that ends the process is broken like any other
        error = f"{_words(problem)} ({_place(problem, loaded)})"
        if hooks is not None and manager.is_registered(hooks):
            manager.unregister(hooks)
        found = {}
    else:
        registry.patches.update(trial.patches)
        registry.options.update(trial.options)
        registry.defects.extend(trial.defects)
    names = tuple(sorted({hook for hook, _ in found.values()}))
    registry.plugins.append(Plugin(name, source, _source_file(loaded), names, error))


def _collect(
    found: Iterable[Tuple[str, Callable[..., Any]]], registry: Registry, trial: Registry
) -> None:
    def register_patch(patch: object) -> None:
        if not isinstance(patch, Patch):
            raise PluginError(f"register_patches wants coati_ext.Patch values, got {patch!r}")
        if patch.name in {**registry.patches, **trial.patches}:
            raise PluginError(f"a patch called {patch.name} exists already")
        trial.patches[patch.name] = patch

    def register_options(section: str, options: type) -> None:
        if section in {**registry.options, **trial.options}:
            raise PluginError(f"a configuration section called {section} exists already")
        if not (inspect.isclass(options) and dataclasses.is_dataclass(options)):
            raise PluginError(f"register_options wants a dataclass for {section}, got {options!r}")
        bare = [it.name for it in dataclasses.fields(options) if it.default is dataclasses.MISSING]
        if bare:
            raise PluginError(
                f"register_options: {section}.{bare[0]} has no default: expected a field made by "
                "coati_ext.option(default, help)"
            )
        try:
            typing.get_type_hints(options)
        except Exception as error:
            raise PluginError(
                f"register_options: the types of {section} cannot be read: {_words(error)}"
            ) from error
        trial.options[section] = options

    def register_defect(defect: object) -> None:
        if not isinstance(defect, Defect):
            raise PluginError(f"register_defects wants coati_ext.Defect values, got {defect!r}")
        trial.defects.append(defect)

    registers = {
        "register_defects": register_defect,
        "register_options": register_options,
        "register_patches": register_patch,
    }
    for hook, function in found:
        if hook in registers:
            returned = taking_all(function, hook)(registers[hook])
            if returned is not None:
                raise PluginError(
                    f"{definition(function)}: {hook} returned {returned!r}: expected calls of "
                    "register(...)"
                )


def _place(problem: BaseException, plugin: object) -> str:
    if isinstance(problem, SyntaxError) and problem.filename:
        return f"{problem.filename}, line {problem.lineno}"
    ours = ("<frozen", __file__, implementations.__file__, importlib.__file__, *pluggy.__path__)
    for frame in reversed(traceback.extract_tb(problem.__traceback__)):
        if not frame.filename.startswith(ours):
            return f"{frame.filename}, line {frame.lineno}"
    return _source_file(plugin) or "not loaded"


def _source_file(plugin: object) -> str:
    if plugin is None:
        return ""
    try:
        return inspect.getfile(plugin if inspect.ismodule(plugin) else type(plugin))
    except TypeError:
        return ""
