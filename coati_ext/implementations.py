"""The hooks of a loaded plugin: its marked functions, checked, and how each is called.

pluggy passes over what it cannot call (a class, a partial, a property, a mark under another
decorator) and does not fill in every argument, each release in its own way. Here each of these
works or is refused by name, so that no hook of a plugin is without effect.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from inspect import Parameter
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

from coati_ext import hookspecs
from coati_ext.errors import PluginError, nearest

HOOKS = sorted(name for name, item in vars(hookspecs).items() if hasattr(item, "coati_ext_spec"))
CHOICES = [name for name in HOOKS if getattr(hookspecs, name).coati_ext_spec["firstresult"]]
OBSERVERS = [name for name in HOOKS if name not in CHOICES and not name.startswith("register_")]
_MARK = "coati_ext_impl"
_MARK_IT = "decorate it with @coati_ext.hookimpl"


def hooks_of(plugin: Any) -> Dict[str, Tuple[str, Callable[..., Any]]]:
    """The marked functions of a plugin by their names in it, each with its hook.

    Raises:
        PluginError: one of them is no valid hook, or there is none; names the file and the line.
    """
    if inspect.isclass(plugin):
        raise PluginError(f"{plugin.__name__} is a class: have you forgotten the ()?")
    found: Dict[str, Tuple[str, Callable[..., Any]]] = {}
    unmarked: Dict[str, Any] = {}
    for name in dir(plugin):
        item = _attribute(plugin, name)
        marks = _marks(item)
        if marks is not None:
            found[name] = (marks.get("specname") or name, item)
            _require_valid(item, found[name][0], marks)
        elif _lost_mark(plugin, name):
            raise PluginError(
                f"{definition(item)}: another decorator hides that {name} is a hook; put "
                "@coati_ext.hookimpl right above its def"
            )
        elif callable(item) and not name.startswith("_"):
            unmarked[name] = item
    for name, item in unmarked.items():
        if name in HOOKS and not _is_imported(item, plugin):
            raise PluginError(f"{definition(item)}: {name} looks like a hook: {_MARK_IT}")
    if not found:
        raise PluginError(f"it has no hook{_likely(unmarked)}")
    return found


def arguments_of(hook: str) -> List[str]:
    """The arguments of a hook, in order."""
    return list(inspect.signature(getattr(hookspecs, hook)).parameters)


def taking_all(function: Callable[..., Any], hook: str) -> Callable[..., Any]:
    """An implementation as a function of all arguments of its hook, in order.

    An argument with a default is given like any other.
    """
    accepted = arguments_of(hook)
    parameters = inspect.signature(function).parameters.values()
    named = [item.name for item in parameters if item.kind is Parameter.KEYWORD_ONLY]
    plain = [accepted.index(item.name) for item in parameters if item.name not in named]
    if plain == list(range(len(accepted))):
        return function
    if not named:
        return lambda *given: function(*[given[index] for index in plain])
    pairs = [(name, accepted.index(name)) for name in named]
    return lambda *given: function(
        *[given[index] for index in plain], **{name: given[index] for name, index in pairs}
    )


def definition(function: Any) -> str:
    """The file and line of a function, for messages."""
    code = getattr(inspect.unwrap(function) if callable(function) else None, "__code__", None)
    return f"{code.co_filename}, line {code.co_firstlineno}" if code else repr(function)


def _attribute(plugin: Any, name: str) -> Any:
    try:
        return getattr(plugin, name)
    except Exception as error:  # a property, or a proxy of something that is not there yet
        if name in HOOKS:
            raise PluginError(
                f"{name} cannot be read: {type(error).__name__}: {error}; a hook is a function"
            ) from error
        return None


def _marks(item: Any) -> Optional[Mapping[str, Any]]:
    try:
        marks = getattr(item, _MARK, None)
    except Exception:  # as above
        return None
    return marks if isinstance(marks, dict) else None


def _lost_mark(plugin: Any, name: str) -> bool:
    """Whether a descriptor is marked, or its function, but not what it gives for the plugin."""
    static = inspect.getattr_static(plugin, name, None)
    inner = (getattr(static, name, None) for name in ("__func__", "fget", "func"))
    kinds = (staticmethod, classmethod, property, functools.cached_property)
    return isinstance(static, kinds) and any(_marks(item) for item in (static, *inner))


def _is_imported(item: Any, plugin: Any) -> bool:
    """Whether a function of a module comes from another one, so that its name means nothing."""
    return (
        inspect.ismodule(plugin) and inspect.isfunction(item) and item.__module__ != plugin.__name__
    )


def _likely(unmarked: Mapping[str, Any]) -> str:
    for name, item in unmarked.items():
        close = difflib.get_close_matches(name, HOOKS, n=1, cutoff=0.75)
        if close:
            return f"; {name} ({definition(item)}) looks like {close[0]}: {_MARK_IT}"
    return f": mark a function that has the name of a hook, {_MARK_IT}"


def _require_valid(function: Any, hook: str, marks: Mapping[str, Any]) -> None:
    where = definition(function)
    if hook not in HOOKS:
        raise PluginError(f"{where}: no hook is called {hook}{nearest(hook, HOOKS)}")
    if not (inspect.isfunction(function) or inspect.ismethod(function)):
        kind = "class" if inspect.isclass(function) else type(function).__name__
        raise PluginError(f"{where}: {hook} is a {kind}: expected a function made by def")
    if marks.get("wrapper") or marks.get("hookwrapper"):
        raise PluginError(
            f"{where}: {hook} is marked as a wrapper, but implementations are called alone, so a "
            "wrapper around it would not run"
        )
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise PluginError(f"{where}: {hook} is async, and nothing awaits it: expected a plain def")
    if inspect.isgeneratorfunction(function):
        raise PluginError(
            f"{where}: {hook} yields, so that calling it runs none of it: expected a plain def"
        )
    accepted = arguments_of(hook)
    for item in inspect.signature(function).parameters.values():
        if item.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD):
            raise PluginError(
                f"{where}: {hook} takes {item}, but hooks get their arguments by name: name those "
                f"that it uses, of {accepted} (a decorator passes the names on by functools.wraps)"
            )
        if item.name not in accepted:
            raise PluginError(
                f"{where}: {hook} has no argument {item.name}; it has {accepted}"
                f"{nearest(item.name, accepted)}"
            )
