"""The configuration section ``[metrics]``."""

from __future__ import annotations

from dataclasses import dataclass

from coati_ext import option


@dataclass(frozen=True)
class Options:
    """``[metrics]``."""

    folder: str = option(
        "",
        "where TensorBoard files go, a folder a run, if the trainer has no log (G1 never "
        "has one, the others without log_dir); empty writes none",
    )
