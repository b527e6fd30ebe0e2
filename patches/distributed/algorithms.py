"""The built-in hooks: the advantage and the loss of each algorithm of ``coati.distributed``.

Letters: B rows, A action columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional, Tuple

from coati_ext import hookimpl, tensors
from coati_ext.errors import UnknownNameError, nearest

if TYPE_CHECKING:
    from torch import Tensor

OVER_THE_BATCH = ("REINFORCE_PPB",)
"""The algorithms whose advantages depend on all rows of an update."""
_ALGORITHMS = ("GRPO", "DAPO", "RLOO", *OVER_THE_BATCH)


@hookimpl(specname="group_advantages")
def by_algorithm(reward: Tensor, action_mask: Tensor, group_size: int, algorithm: str) -> Tensor:
    """The advantage of each action by the formula of the algorithm's paper: (B, A).

    GRPO (arXiv 2402.03300, section 4.1.2) and DAPO (2503.14476, equation 9) standardise a reward
    within its group, RLOO (2402.14740, equation 8) takes the mean of the others off it, and
    REINFORCE_PPB (REINFORCE++ with a baseline, 2501.03262) takes the group's mean off it and
    standardises over the real actions of an update on all ranks.
    """
    groups = reward.view(-1, group_size)
    if algorithm in ("GRPO", "DAPO"):
        centred = (groups - groups.mean(dim=1, keepdim=True)) / (
            groups.std(dim=1, keepdim=True) + 1e-4
        )
    elif algorithm == "RLOO":
        centred = (groups - groups.mean(dim=1, keepdim=True)) * (group_size / (group_size - 1))
    elif algorithm in OVER_THE_BATCH:
        centred = groups - groups.mean(dim=1, keepdim=True)
    else:
        raise UnknownNameError(
            f"grpo_config['algo'] = {algorithm!r}: expected one of {', '.join(_ALGORITHMS)}"
            f"{nearest(str(algorithm), _ALGORITHMS)}; a plugin's group_advantages may have others"
        )
    advantages = centred.reshape(-1, 1).expand(action_mask.shape).masked_fill(~action_mask, 0)
    if algorithm in OVER_THE_BATCH:
        from coati_ext.rollout.ranks import total

        moments = total(tensors.moments(advantages, action_mask))
        advantages = tensors.whitened(advantages, action_mask, moments)
    return advantages


@hookimpl(specname="action_losses")
def clipped(
    log_probs: Tensor,
    old_log_probs: Tensor,
    reference_log_probs: Optional[Tensor],
    advantages: Tensor,
    action_mask: Tensor,
    clip: Tuple[float, float],
    beta: float,
    algorithm: str,
) -> Tensor:
    """PPO's clipped loss plus ``beta`` times an estimate of the KL to the reference: (B, A).

    The estimate is k3, as in GRPO's equation 4; k2, half the squared log-ratio, for REINFORCE_PPB.
    """
    import torch

    distance = (
        0.0
        if reference_log_probs is None
        else beta * _distance(reference_log_probs, log_probs, action_mask, algorithm)
    )
    ratio, _ = tensors.policy_ratio(log_probs, old_log_probs, action_mask)
    bounded = ratio.clamp(1 - clip[0], 1 + clip[1])
    return -torch.min(ratio * advantages, bounded * advantages) + distance


def _distance(reference: Tensor, log_probs: Tensor, mask: Tensor, algorithm: str) -> Tensor:
    """An estimate of the KL to the reference for each action: (B, A).

    k3 has no bound here, unlike in a penalty: as a loss it has to pull back from any distance.
    """
    grown, _ = tensors.policy_ratio(reference, log_probs, mask)
    gap = (reference - log_probs).masked_fill(~mask, 0)
    return 0.5 * gap * gap if algorithm in OVER_THE_BATCH else grown - gap - 1
