"""From prompts to PPO or GRPO experience: one pipeline for every generation of coati.

``pipeline`` runs the steps, ``frame`` holds the left-padded batch, ``host`` what is known of it
without asking the device, ``models`` inspects wrapped models, ``inside`` computes within their
wrappers, ``log_probs`` takes log-probabilities from a head, ``values`` asks a critic for tokens,
``scores`` a reward model for rows, ``packing`` saves tokens, and ``ranks`` holds collectives. Names
load on first use, so that a patch can be declared without importing torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from coati_ext._lazy import lazy

if TYPE_CHECKING:
    from coati_ext.rollout.frame import Frame
    from coati_ext.rollout.pipeline import Judgement, Request, Rollout, judge, roll_out, sample
    from coati_ext.rollout.values import state_values

_HOMES = {
    "Frame": "frame",
    "Judgement": "pipeline",
    "Request": "pipeline",
    "Rollout": "pipeline",
    "judge": "pipeline",
    "roll_out": "pipeline",
    "sample": "pipeline",
    "state_values": "values",
}

__all__ = [
    "Frame",
    "Judgement",
    "Request",
    "Rollout",
    "judge",
    "roll_out",
    "sample",
    "state_values",
]

__getattr__, __dir__ = lazy(__name__, _HOMES)
