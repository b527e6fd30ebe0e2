"""A plugin with an advantage estimator and an option of its own: leave-one-out (RLOO).

    COATI_EXT=1 COATI_EXT_SET=plugins=./leave_one_out.py python train_ppo.py ...

An answer's advantage is what it has earned, less the mean of what the other answers have earned
(Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free!"; Ahmadian et al.,
arXiv 2402.14740). No critic is asked. In coati-ext.toml:

    plugins = ["./leave_one_out.py"]
    [leave_one_out]
    group = 4

Letters: B rows, A action columns, G rows in a group.
"""

from dataclasses import dataclass

import coati_ext
from coati_ext import hookimpl


@dataclass(frozen=True)
class Options:
    group: int = coati_ext.option(
        0,
        "answers that are compared with each other, to the same prompt and side by side; "
        "0: all answers of a rollout",
        minimum=0,
    )


@hookimpl
def register_options(register):
    register("leave_one_out", Options)


@hookimpl
def estimate_advantages(values, rewards, action_mask):
    """Advantages (B, A) from per-action rewards (B, A): of a whole answer, on each of its actions.

    Raises:
        ValueError: the rollout cannot be cut into groups of two answers or more.
    """
    rows = len(rewards)
    group = coati_ext.options("leave_one_out").group or rows
    if group < 2 or rows % group:
        raise ValueError(
            f"[leave_one_out] group = {group}: a rollout of {rows} answers cannot be cut into "
            "groups of that many, of at least 2"
        )
    earned = rewards.masked_fill(~action_mask, 0).sum(dim=1).view(-1, group)  # (B/G, G)
    others = (earned.sum(dim=1, keepdim=True) - earned) / (group - 1)
    return (earned - others).view(rows, 1).expand_as(rewards).masked_fill(~action_mask, 0)
