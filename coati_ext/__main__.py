"""``python -m coati_ext``, the same as the ``coati-ext`` command."""

import os
import sys

try:
    here = os.getcwd()
except FileNotFoundError:  # it was deleted, as main() tells
    here = ""
# Python has put the working directory first; there it would shadow what the command imports.
if not getattr(sys.flags, "safe_path", False) and sys.path[0] in ("", here):
    del sys.path[0]

from coati_ext.cli import main

if __name__ == "__main__":
    sys.exit(main())
