"""The path of the file with the known variants of upstream's functions.

``nox -s upstream`` writes that file.
"""

from pathlib import Path

UPSTREAM = Path(__file__).with_suffix(".toml")
