"""Where the known variants of upstream's functions are. ``nox -s upstream`` writes the file."""

from pathlib import Path

UPSTREAM = Path(__file__).with_suffix(".toml")
