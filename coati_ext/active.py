"""What the running patches use: the chosen hook implementations and the options, as resolved.

Replacements are plain top-level functions (they must pickle and compile), so they read here what
a closure would have held. Set as a whole by ``enable``, emptied by ``disable``.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Mapping

_choices: Dict[str, Callable[..., Any]] = {}
_options: Dict[str, Any] = {}


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


def install(choices: Mapping[str, Callable[..., Any]], options: Mapping[str, Any]) -> None:
    """Make these the choices and options in force, in place of any others."""
    _choices.clear()
    _choices.update(choices)
    _options.clear()
    _options.update(options)
