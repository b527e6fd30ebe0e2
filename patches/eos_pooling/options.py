"""The configuration section ``[eos_pooling]``."""

from __future__ import annotations

from dataclasses import dataclass

from coati_ext import option


@dataclass(frozen=True)
class Options:
    """``[eos_pooling]``."""

    pooling: str = option(
        "eos",
        "what the value head scores: eos (the hidden state at the last real token), masked_mean "
        "(the mean over the real tokens) or the pool_reward of a plugin, by its name",
        chooses="pool_reward",
    )
