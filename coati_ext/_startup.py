"""What the start-up file runs in every armed process: a watch for the first import of coati.

Beside modules that the interpreter holds already, this imports two lines of ours. Everything else,
plugins included, loads at the first ``import coati``: a failure there stops that import, whereas
``site`` would print and swallow a failure at start-up, and training would go on unpatched.
"""

from __future__ import annotations

import os
import sys

from coati_ext.flag import OFF


class _Watch:
    """A ``sys.meta_path`` finder that finds nothing: it arms the patches before coati is found."""

    def __init__(self) -> None:
        self.busy = False

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        # Planning looks coati up itself, which asks this finder again.
        if name == "coati" and not self.busy:
            self.busy = True
            try:
                from coati_ext.switch import arm

                arm()
            finally:
                self.busy = False
            # Reached only when armed: after a refusal, a second `import coati` is refused too.
            sys.meta_path.remove(self)


def activate() -> None:
    """Start the watch if ``COATI_EXT`` asks for it; starting it twice is the same as once."""
    if os.environ.get("COATI_EXT", "").strip().lower() in OFF:
        return
    if not any(isinstance(finder, _Watch) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watch())


activate()
