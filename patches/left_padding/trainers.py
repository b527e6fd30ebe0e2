"""``_before_fit`` of the reward-model trainer of G3 and G4."""

from __future__ import annotations

import warnings
from copy import copy
from typing import Any, Callable

from .collators import LeftPadded


def read_left_padded(original: Callable[..., None], self: Any, *args: Any, **kwargs: Any) -> None:
    """Let a reward-model trainer read its preference rows left-padded.

    The trainer gets loaders of its own, which share data and samplers with those that it was given.
    So whoever else reads the same loader or calls the same collator gets upstream's rows.
    """
    original(self, *args, **kwargs)
    for name in ("train_dataloader", "eval_dataloader"):
        setattr(self, name, _left_padded(getattr(self, name)))


def _left_padded(loader: Any) -> Any:
    from torch.utils.data import DataLoader

    if loader is None:
        return None
    if not isinstance(loader, DataLoader):
        warnings.warn(
            f"a reward model is trained on the batches of a {type(loader).__name__}: rows longer "
            "than max_length lose their end token there. Expected a torch DataLoader",
            stacklevel=2,
        )
        return loader
    view = copy(loader)
    view.collate_fn = LeftPadded(loader.collate_fn)
    view._iterator = None  # persistent workers collate for the loader that started them
    return view
