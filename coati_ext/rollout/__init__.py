"""From prompts to experience: one pipeline for every generation of coati.

``pipeline`` is the order of the steps, ``frame`` the layout of a batch, ``models`` what a wrapped
model takes, and ``ranks`` what the processes of a job agree on. Names are loaded when they are
first used, so that a patch can be declared without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from coati_ext._lazy import lazy

if TYPE_CHECKING:
    from coati_ext.rollout.frame import Frame
    from coati_ext.rollout.pipeline import Judgement, Request, Rollout, judge, roll_out, sample

_HOMES = {
    "Frame": "frame",
    "Judgement": "pipeline",
    "Request": "pipeline",
    "Rollout": "pipeline",
    "judge": "pipeline",
    "roll_out": "pipeline",
    "sample": "pipeline",
}

__all__ = ["Frame", "Judgement", "Request", "Rollout", "judge", "roll_out", "sample"]

__getattr__, __dir__ = lazy(__name__, _HOMES)
