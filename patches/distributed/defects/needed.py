"""What the measures of this folder cannot do without."""

from __future__ import annotations

import re
from importlib import import_module

from coati_ext.errors import NotMeasuredError


def need_distributed() -> None:
    """Import the package and all that it imports.

    Raises:
        NotMeasuredError: this coati has no such package, or something that it imports is not here.
    """
    try:
        import_module("coati.distributed.grpo_consumer")
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == "coati.distributed"
        if absent:
            raise NotMeasuredError("this coati has no coati.distributed") from error
        reason = re.sub(r" \(.*\)$", "", str(error).splitlines()[0])  # the path is long
        raise NotMeasuredError(f"coati.distributed cannot be imported: {reason}") from error
