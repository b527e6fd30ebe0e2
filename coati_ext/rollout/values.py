"""Values of tokens, asked of a critic through whatever wraps it.

Upstream's critic of G1 and G2 gives one value a row. It keeps that shape for every caller but the
hook ``state_values``. What the hook asks for is not an argument, because the ``forward`` of a
wrapper or of a user's critic might not pass it on.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from coati_ext.active import choice

if TYPE_CHECKING:
    from torch import Tensor

    from coati_ext.rollout.frame import Frame

_of_tokens: ContextVar[bool] = ContextVar("of_tokens", default=False)


def state_values(model: Any, frame: Frame) -> Tensor:
    """The critic's value of the state before each action, (B, A), by the hook ``state_values``."""
    before = _of_tokens.set(True)
    try:
        values: Tensor = choice("state_values")(model, frame)
    finally:
        _of_tokens.reset(before)
    return values


def of_tokens() -> bool:
    """Whether a critic is to give the value before each token, (B, S): within ``state_values``."""
    return _of_tokens.get()
