"""Stand-in for the top-level patches/ folder while running from a source checkout."""

from pathlib import Path

# A wheel has the real folder here, which wins over this module (and this file is left out of it).
__path__ = [str(Path(__file__).resolve().parent.parent / "patches")]
__spec__.submodule_search_locations = __path__  # type: ignore[name-defined]
