"""What the running patches use: the chosen hook implementations and the options, as resolved.

Replacements are plain top-level functions (they must pickle and compile), so they read here what
a closure would have held. Set as a whole by ``enable``, emptied by ``disable``.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Mapping

_choices: Dict[str, Callable[..., Any]] = {}
_options: Dict[str, Any] = {}
_observers: Dict[str, Callable[..., Any]] = {}


def choice(hook: str) -> Callable[..., Any]:
    """The implementation of a choice hook picked by the plan; it takes the spec's arguments.

    Raises:
        RuntimeError: the patches are not on.
    """
    try:
        return _choices[hook]
    except KeyError:
        raise RuntimeError(f"no implementation of {hook}: call coati_ext.enable() first") from None


def options(section: str) -> Any:
    """The options of a configuration section: an instance of the class that was registered for it.

    Raises:
        RuntimeError: the patches are not on.
    """
    try:
        return _options[section]
    except KeyError:
        raise RuntimeError(f"no options of {section}: call coati_ext.enable() first") from None


def announce(hook: str, **seen: Any) -> None:
    """Let every observer of a hook see something.

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
    """Make these the choices, options and observers in force, in place of any others."""
    for mine, new in ((_choices, choices), (_options, options), (_observers, observers)):
        mine.clear()
        mine.update(new)
