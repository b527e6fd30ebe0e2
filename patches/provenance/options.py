"""The configuration section ``[provenance]``."""

from __future__ import annotations

from dataclasses import dataclass

from coati_ext import option


@dataclass(frozen=True)
class Options:
    """``[provenance]``."""

    on_mismatch: str = option(
        "error",
        "what to do when a reward model was trained in another form than it would be used in: "
        "error, warn or ignore (a critic, which is trained further, only ever warns)",
        choices=("error", "warn", "ignore"),
    )
