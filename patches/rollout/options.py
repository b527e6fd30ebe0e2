"""The configuration section ``[rollout]``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from coati_ext import option

_BANDIT = {"G1": "sequence", "G2": "sequence"}


@dataclass(frozen=True)
class Options:
    """``[rollout]``."""

    advantage: str = option(
        "gae",
        "gae (of each token), sequence (the whole answer is one action, as upstream's G1 and G2 "
        "have it; their default) or the estimate_advantages of a plugin, by its name",
        chooses="estimate_advantages",
        defaults=_BANDIT,
    )
    reward_placement: str = option(
        "terminal",
        "where the score lands: terminal (once, on the last action), every_token (as upstream's G3 "
        "and G4 do) or the shape_reward of a plugin, by its name",
        chooses="shape_reward",
    )
    advantage_scale: str = option(
        "unscaled",
        "what the policy loss weighs actions with: unscaled, whitened (mean 0 and deviation 1 over "
        "the real actions of a training batch on all ranks) or the scale_advantages of a plugin",
        chooses="scale_advantages",
    )
    generate: str = option(
        "hf",
        "what samples the answers: hf (generate of transformers; the same token ids as upstream's "
        "sampler, faster), upstream (its own sampler; the default before G4) or the "
        "sample_answers of a plugin, by its name",
        chooses="sample_answers",
        formerly={"upstream_sampler": "upstream"},
        defaults={"G1": "upstream", "G2": "upstream", "G3": "upstream"},
    )
    kl: Optional[str] = option(
        None,
        "the estimate that the penalty takes: k1 (the log-ratio) or k3 (never negative, at most 10 "
        "nats an action); if not set, k3 where a whole answer is one action, as in upstream's G1 "
        "and G2, and k1 otherwise",
        choices=("k1", "k3"),
        unset=lambda options: "k3" if options.advantage == "sequence" else "k1",
    )
    gamma: Optional[float] = option(
        None,
        "discount per action; the maker's own, or 1, if not set",
        minimum=0,
        maximum=1,
        unset=lambda options: "the maker's own, or 1",
    )
    lam: Optional[float] = option(
        None,
        "lambda of GAE; the maker's own, or 0.95, if not set",
        minimum=0,
        maximum=1,
        unset=lambda options: "the maker's own, or 0.95",
    )
    score_clip: float = option(
        5.0,
        "PPO sees the score held to plus or minus this (5 in upstream's G3 and G4); 0 leaves it, "
        "which is the default where upstream does, in G1 and G2",
        minimum=0,
        defaults={"G1": 0.0, "G2": 0.0},
    )
    missing_eos_penalty: float = option(
        0.0, "taken off the score of an answer that was cut off before its end", minimum=0
    )
