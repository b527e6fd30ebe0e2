"""``python -m coati_ext``, the same as the ``coati-ext`` command."""

import sys

from coati_ext.cli import main

if __name__ == "__main__":
    sys.exit(main())
