"""``RewardModelTrainer.__init__`` of G3 and G4, which fails to create its default loss."""

from __future__ import annotations

from inspect import signature
from typing import Any, Callable


def default_loss(original: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """Construct the trainer; ``loss_fn=None`` becomes ``LogSigLoss()``."""
    from coati.models import LogSigLoss

    call = signature(original).bind(*args, **kwargs)
    if call.arguments.get("loss_fn") is None:
        call.arguments["loss_fn"] = LogSigLoss()
    original(*call.args, **call.kwargs)
