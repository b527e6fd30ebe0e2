"""Experience in one frame: what PPO consumes is what the models see alone, unpadded and in order.

Upstream hands its reward model another form of a row than it was trained on, takes ``ids != pad``
for the mask (which hides EOS when ``pad == eos``), scores without positions, values states one
token late or in another frame than it trains on, spreads the score over every token, and draws
every rollout from one seed. Here ``make_experience`` of every generation is one pipeline
(``coati_ext.rollout``) of hooks whose defaults are in this folder; the training step recomputes
log-probabilities and values through the same hooks, so that before the first update the policy
ratio is 1 and no value has changed. See ColossalAI #4475, #3374, #4491, #3696.
"""

from __future__ import annotations

from .defects import register_defects
from .options import register_options
from .sampler import upstream_sampler
from .sites import register_patches
from .steps import (
    compacted,
    every_token,
    from_critic,
    from_logits,
    from_reward_model,
    gae,
    sequence,
    standardised,
    terminal,
    unscaled,
    up_to_the_end,
    whitened,
)

__all__ = [
    "compacted",
    "every_token",
    "from_critic",
    "from_logits",
    "from_reward_model",
    "gae",
    "register_defects",
    "register_options",
    "register_patches",
    "sequence",
    "standardised",
    "terminal",
    "unscaled",
    "up_to_the_end",
    "upstream_sampler",
    "whitened",
]
