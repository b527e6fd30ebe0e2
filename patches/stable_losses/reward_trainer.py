"""``RewardModelTrainer.__init__`` of G3 and G4, whose default loss cannot be made."""

from __future__ import annotations

from inspect import signature
from typing import Any, Callable


def default_loss(original: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """Construct the trainer with the loss that ``loss_fn=None`` means."""
    from coati.models import LogSigLoss

    call = signature(original).bind(*args, **kwargs)
    if call.arguments.get("loss_fn") is None:
        call.arguments["loss_fn"] = LogSigLoss()
    original(*call.args, **call.kwargs)
