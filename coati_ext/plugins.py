"""Find and load all plugins, built-in ones and others, in the same way.

Every process loads its plugins anew from the configuration; a manager is never shared or pickled.
A plugin that fails to load is recorded with its error: the command line shows it and continues, a
training run refuses to start.
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
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Tuple

import pluggy

from coati_ext import hookspecs
from coati_ext.errors import PluginError, nearest
from coati_ext.patching.defect import Defect
from coati_ext.patching.patch import Patch

GROUP = "coati_ext"
_texts: Dict[str, Tuple[Path, bytes]] = {}
HOOKS = sorted(name for name, item in vars(hookspecs).items() if hasattr(item, "coati_ext_spec"))
CHOICES = [name for name in HOOKS if getattr(hookspecs, name).coati_ext_spec["firstresult"]]


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
    arguments: Tuple[str, ...]


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

    def implementations(self, hook: str) -> List[Implementation]:
        """Every implementation of a hook, built-ins first."""
        plugins = {plugin.name: plugin for plugin in self.plugins if not plugin.error}
        found = []
        for item in getattr(self.manager.hook, hook).get_hookimpls():
            own = item.function.__name__
            name = item.plugin_name if own == hook else own
            found.append(
                Implementation(name, plugins[item.plugin_name], item.function, item.argnames)
            )
        return sorted(found, key=lambda item: (not item.plugin.builtin, item.name))

    def resolve(self, hook: str, implementation: Implementation) -> Callable[..., Any]:
        """An implementation as a plain function that takes all arguments of the hook."""
        spec = tuple(getattr(self.manager.hook, hook).spec.argnames)
        function = implementation.function
        if implementation.arguments == spec:
            return function
        wanted = [spec.index(name) for name in implementation.arguments]

        def chosen(*arguments: Any) -> Any:
            return function(*[arguments[index] for index in wanted])

        return chosen

    def observer(self, hook: str) -> Callable[..., None]:
        """A function with the hook's keyword arguments that calls every implementation."""
        caller = getattr(self.manager.hook, hook)
        by_code = {
            inspect.unwrap(item.function).__code__: item for item in self.implementations(hook)
        }

        def call_all(**arguments: Any) -> None:
            try:
                caller(**arguments)
            except Exception as error:
                frames = traceback.walk_tb(error.__traceback__)
                at_fault = [by_code[f.f_code] for f, _ in frames if f.f_code in by_code]
                if not at_fault:
                    raise
                item = at_fault[0]
                raise PluginError(
                    f"{hook} of plugin {item.plugin.name} ({_definition(item.function)}) failed: "
                    f"{type(error).__name__}: {error}"
                ) from error

        return call_all


def load(named: Sequence[Tuple[str, str, Optional[Path]]]) -> Registry:
    """Load the built-ins, the installed entry points and the plugins named in the configuration.

    Args:
        named: ``(plugin, origin, folder)`` for each configured plugin: a module name, or a ``.py``
            file relative to the folder of the configuration file.
    """
    manager = pluggy.PluginManager("coati_ext")
    manager.add_hookspecs(hookspecs)
    registry = Registry(manager)
    patches = importlib.import_module("coati_ext.patches")
    for name in sorted(item.name for item in pkgutil.iter_modules(patches.__path__) if item.ispkg):
        _add(registry, name, "built-in", _importer(f"coati_ext.patches.{name}"))
    for point in sorted(_entry_points(), key=lambda point: point.name):
        distribution = getattr(getattr(point, "dist", None), "name", None)
        source = f"entry point {point.value}" + (f" of {distribution}" if distribution else "")
        _add(registry, point.name, source, point.load)
    for name, origin, folder in named:
        if name.endswith(".py"):
            file = (folder or Path.cwd()) / name
            _add(registry, file.stem, origin, _file_importer(file))
        else:
            _add(registry, name, origin, _importer(name))
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
            del sys.modules[name]
            raise
        return module

    return load_file


def _add(registry: Registry, name: str, source: str, importer: Callable[[], object]) -> None:
    """Load one plugin and run its registration hooks, or record why it is broken."""
    manager = registry.manager
    loaded: Any = None
    hooks: Tuple[str, ...] = ()
    error = ""
    trial = Registry(manager)  # merged only if the whole plugin is valid
    try:
        if manager.has_plugin(name):
            raise PluginError(f"two plugins are called {name}")
        loaded = importer()
        _check_hooks(loaded)
        manager.register(loaded, name)
        hooks = tuple(sorted({caller.name for caller in manager.get_hookcallers(loaded) or ()}))
        _collect(loaded, registry, trial)
    except Exception as problem:
        error = f"{type(problem).__name__}: {problem} ({_place(problem, loaded)})"
        if loaded is not None and manager.is_registered(loaded):
            manager.unregister(loaded)
    else:
        registry.patches.update(trial.patches)
        registry.options.update(trial.options)
        registry.defects.extend(trial.defects)
    file = str(getattr(loaded, "__file__", None) or _source_file(loaded))
    registry.plugins.append(Plugin(name, source, file, hooks, error))


def _check_hooks(plugin: Any) -> None:
    """Raise for an invalid hook, naming the plugin's file and line, which pluggy does not do."""
    if inspect.isclass(plugin):
        raise PluginError(f"{plugin.__name__} is a class: have you forgotten the ()?")
    for attribute in dir(plugin):
        function = getattr(plugin, attribute)
        marks = getattr(function, "coati_ext_impl", None)
        if not isinstance(marks, dict):
            continue
        hook = marks.get("specname") or attribute
        where = _definition(function)
        if hook not in HOOKS:
            raise PluginError(f"{where}: no hook is called {hook}{nearest(hook, HOOKS)}")
        if hook in CHOICES and (marks.get("wrapper") or marks.get("hookwrapper")):
            raise PluginError(
                f"{where}: {hook} computes numbers, so one implementation is picked and called "
                "alone; a wrapper around it would not run"
            )
        accepted = list(inspect.signature(getattr(hookspecs, hook)).parameters)
        extra = [name for name in inspect.signature(function).parameters if name not in accepted]
        if extra:
            raise PluginError(f"{where}: {hook} has no argument {extra[0]}; it has {accepted}")


def _collect(plugin: Any, registry: Registry, trial: Registry) -> None:
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
        trial.options[section] = options

    def register_defect(defect: object) -> None:
        if not isinstance(defect, Defect):
            raise PluginError(f"register_defects wants coati_ext.Defect values, got {defect!r}")
        trial.defects.append(defect)

    manager = registry.manager
    others = [item for item in manager.get_plugins() if item is not plugin]
    for hook, register in (
        ("register_patches", register_patch),
        ("register_options", register_options),
        ("register_defects", register_defect),
    ):
        manager.subset_hook_caller(hook, others)(register=register)


def _definition(function: Callable[..., Any]) -> str:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{code.co_filename}, line {code.co_firstlineno}" if code else repr(function)


def _place(problem: BaseException, plugin: object) -> str:
    if isinstance(problem, SyntaxError) and problem.filename:
        return f"{problem.filename}, line {problem.lineno}"
    ours = (__file__, importlib.__file__)
    for frame in reversed(traceback.extract_tb(problem.__traceback__)):
        if frame.filename not in ours and not frame.filename.startswith("<frozen"):
            return f"{frame.filename}, line {frame.lineno}"
    return _source_file(plugin) or "not loaded"


def _source_file(plugin: object) -> str:
    if plugin is None:
        return ""
    try:
        return inspect.getfile(plugin if inspect.ismodule(plugin) else type(plugin))
    except TypeError:
        return ""
