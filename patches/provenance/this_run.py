"""How this run pools, pads and tokenizes the rows of a reward model or critic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional, Tuple

import coati_ext
from coati_ext import options
from coati_ext.checkpoints import stamp
from coati_ext.checkpoints.stamp import (
    CRITIC,
    EOS,
    FRAME,
    MEAN_POOLED,
    REWARD_MODEL,
    Layout,
    Stamp,
)
from coati_ext.rollout.models import layers_of

_KINDS = {"RewardModel": REWARD_MODEL, "Critic": CRITIC}
_AS_UPSTREAM: Layout = {"padding": "as it comes", "position_ids": "by column"}


@dataclass
class RowsSeen:
    """The tokenizer that coati last used in this process, and its EOS token and fingerprint."""

    tokenizer: Any = None
    end_token: Optional[int] = None
    fingerprint: str = ""


rows_seen = RowsSeen()


def see(tokenizer: Any) -> None:
    """Remember a tokenizer for the stamps of this process; ``None`` is ignored."""
    if tokenizer is not None and rows_seen.tokenizer is not tokenizer:
        rows_seen.tokenizer = tokenizer
        rows_seen.end_token = tokenizer.eos_token_id
        rows_seen.fingerprint = stamp.tokenizer_fingerprint(tokenizer)


def form_here(kind: str) -> Stamp:
    """The stamp for a model of that kind under the settings and tokenizer of this run."""
    report = coati_ext.status()
    on = {row.name for row in report.patches if row.state != "off"}
    generation = str(report.generation)
    first = generation == "G1"
    framed = ("eos_pooling" if kind == REWARD_MODEL else "rollout") in on
    if kind == REWARD_MODEL:
        pooling = MEAN_POOLED if first else EOS
        pooling = options("eos_pooling").pooling if framed else pooling
    else:
        pooling = MEAN_POOLED if first else "at each token"
        pooling = "before each token" if framed else pooling
    return Stamp(
        kind=kind,
        pooling=pooling,
        **(FRAME if framed else _AS_UPSTREAM),
        end_token=rows_seen.end_token,
        tokenizer=rows_seen.fingerprint,
        generation=generation,
        version=coati_ext.__version__,
        digest=report.digest,
    )


def valued(model: Any) -> Tuple[Any, str]:
    """The reward model or critic inside any wrappers, and its kind; ``(None, "")`` if neither."""
    for layer in layers_of(model):
        for cls in type(layer).__mro__:
            if cls.__module__.split(".")[0] == "coati" and cls.__name__ in _KINDS:
                return layer, _KINDS[cls.__name__]
    return None, ""


def is_master() -> bool:
    """Whether this process writes files and prints for all ranks (rank 0)."""
    from coati_ext.rollout import ranks

    return ranks.is_first()
