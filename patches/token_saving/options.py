"""The configuration section ``[token_saving]``."""

from __future__ import annotations

from dataclasses import dataclass

from coati_ext import option


@dataclass(frozen=True)
class Options:
    """``[token_saving]``."""

    level: str = option(
        "auto",
        "what the models compute: prefix (what rows share at their head once), packed (real "
        "tokens only), groups (rows of like length together), off (every column), auto (the first "
        "of these that backbone, strategy and stack allow) or the last_hidden_states of a plugin",
        chooses="last_hidden_states",
        without="off",
    )
    warm_up: int = option(
        0,
        "tokens of one more row, whose states nothing reads, in each model's first forward of its "
        "training: with the longest row that can come, memory runs out at once or not at all; 0 "
        "adds none, nor does level off",
        minimum=0,
    )
