"""The active hook implementations and options, as process-wide state.

Replacement functions are plain top-level functions, because they must pickle and compile. So they
read this state instead of a closure. ``enable`` sets it, ``disable`` clears it.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Mapping

_choices: Dict[str, Callable[..., Any]] = {}
_options: Dict[str, Any] = {}
_observers: Dict[str, Callable[..., Any]] = {}


def choice(hook: str) -> Callable[..., Any]:
    """The active implementation of a choice hook; it takes all arguments of the hook.

    Raises:
        RuntimeError: the patches are not on.
    """
    try:
        return _choices[hook]
    except KeyError:
        raise RuntimeError(f"no implementation of {hook}: call coati_ext.enable() first") from None


def options(section: str) -> Any:
    """The options of a configuration section, as an instance of its registered dataclass.

    Raises:
        RuntimeError: the patches are not on.
    """
    try:
        return _options[section]
    except KeyError:
        raise RuntimeError(f"no options of {section}: call coati_ext.enable() first") from None


def announce(hook: str, **seen: Any) -> None:
    """Call every implementation of an observer hook with these arguments.

    Raises:
        PluginError: an observer failed; the message names its plugin.
    """
    if hook in _observers:
        _observers[hook](**seen)


def put_in_force(
    choices: Mapping[str, Callable[..., Any]],
    options: Mapping[str, Any],
    observers: Mapping[str, Callable[..., Any]],
) -> None:
    """Replace the active choices, options and observers."""
    global _choices, _options, _observers
    _choices, _options, _observers = dict(choices), dict(options), dict(observers)
