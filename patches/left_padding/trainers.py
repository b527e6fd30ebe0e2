"""``_before_fit`` of the DPO and ORPO trainers, whose batches keep upstream's layout."""

from __future__ import annotations

from typing import Any, Callable

from .collators import UPSTREAM_LAYOUT


def keep_upstream_layout(
    original: Callable[..., None], self: Any, *args: Any, **kwargs: Any
) -> None:
    """Make the preference collators of a DPO or ORPO trainer's loaders keep upstream's layout."""
    from coati.dataset import DataCollatorForPreferenceDataset

    for loader in (*args, *kwargs.values()):
        collator = getattr(loader, "collate_fn", None)
        if isinstance(collator, DataCollatorForPreferenceDataset):
            setattr(collator, UPSTREAM_LAYOUT, True)
    original(self, *args, **kwargs)
