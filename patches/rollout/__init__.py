"""One left-padded batch layout (a frame) for all models in rollout and PPO or GRPO training.

Every log-probability, value and score equals that of the unpadded row alone. Upstream pads and
tokenizes rows for its reward model differently than in training, uses ``ids != pad`` as mask (which
masks EOS if ``pad == eos``), scores without position ids, computes values one token late or in
another layout than in training, adds the score to every token, and samples every rollout with the
same seed. Here ``make_experience`` of every generation is one pipeline (``coati_ext.rollout``) of
hooks, with defaults in ``steps``, ``sampler`` and ``generate``. The training step recomputes
log-probabilities and values through the same hooks, so before the first update the policy ratio is
1 and the values are unchanged. See ColossalAI #4475, #3374, #4491, #3696.
"""

from __future__ import annotations

import warnings
from typing import Any, Callable

from coati_ext import Defect, Patch, hookimpl, with_variants

from ..upstream import UPSTREAM
from .defects import DEFECTS
from .generate import hf
from .options import Options
from .sampler import upstream
from .sites import RELIES, SITES
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
    "hf",
    "register_defects",
    "register_options",
    "register_patches",
    "sequence",
    "standardised",
    "terminal",
    "unscaled",
    "up_to_the_end",
    "upstream",
    "whitened",
]


@hookimpl
def register_patches(register: Callable[[Patch], None]) -> None:
    """Declare the patch."""
    register(
        Patch(
            name="rollout",
            summary="experience and PPO steps in one frame: masks, values, rewards, advantages",
            default=True,
            changes=(
                "Everything PPO learns from. The reward model scores rows in its training form; "
                "masks end with the end token, also when pad == eos; values are of the state "
                "before each action, equal in rollout and training; the score lands once, on the "
                "last action; dropout is off; no rollout repeats. G1 and G2 keep whole answers as "
                "actions unless rollout.advantage = gae."
            ),
            reference="ColossalAI #4475, #3374, #4491, #3696, #4125; arXiv 1506.02438, 1707.06347",
            sites=with_variants(SITES, UPSTREAM, "rollout"),
            relies=with_variants(RELIES, UPSTREAM, "rollout"),
        )
    )


@hookimpl
def register_options(register: Callable[[str, type], None]) -> None:
    """Declare ``[rollout]``."""
    register("rollout", Options)


@hookimpl
def register_defects(register: Callable[[Defect], None]) -> None:
    """Declare what ``doctor --live`` measures."""
    for defect in DEFECTS:
        register(defect)


def __getattr__(name: str) -> Any:
    if name == "upstream_sampler":  # as it was called in 0.4.0
        told = "coati_ext.patches.rollout.upstream_sampler is called upstream now"
        warnings.warn(f"{told}; the old name goes with version 1.0", FutureWarning, stacklevel=2)
        return upstream
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
