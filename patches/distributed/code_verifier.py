"""``check_correctness_code_api``, whose failures upstream takes for wrong answers."""

from __future__ import annotations

import warnings
from typing import Any, Callable

from coati_ext.errors import in_a_line


def check_or_tell(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Ask the code verifier; say so if it cannot be asked, for then the answer scores 0."""
    try:
        return original(*args, **kwargs)
    except Exception as error:
        where = kwargs.get("url", "its default address")
        warnings.warn(
            f"the code verifier at {where} gives no answer, so an answer scores 0 whatever it is: "
            f"{in_a_line(error)}",
            stacklevel=2,
        )
        raise
