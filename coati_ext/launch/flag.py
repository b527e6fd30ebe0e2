"""The values of ``COATI_EXT`` that mean off and on; any other value is a list of patches."""

from __future__ import annotations

OFF = ("", "0", "off", "false", "no")
ON = ("1", "on", "true", "yes")


def says_off(flag: str) -> bool:
    """Whether a value of ``COATI_EXT`` means off."""
    return flag.strip().lower() in OFF


def kills(flag: str) -> bool:
    """Whether it was set to off, which ``enable()`` in a script does not override."""
    return bool(flag.strip()) and says_off(flag)
