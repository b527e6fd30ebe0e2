"""``RewardModelTrainer``: the centring term of its loss. Letters: B pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable

from coati_ext import options, tensors
from coati_ext.rollout.models import attributes

if TYPE_CHECKING:
    from torch import Tensor


def with_centring(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """Train as upstream does, with ``center * mean((chosen + rejected)^2)`` added to each loss."""
    weight, loss = options("reward_scaling").center, self.loss_fn
    if not weight:
        return original(self, *args, **kwargs)

    def centred(chosen_reward: Tensor, reject_reward: Tensor) -> Any:
        centring = tensors.centring_loss(chosen_reward, reject_reward)
        return loss(chosen_reward, reject_reward) + weight * centring

    with attributes(self, loss_fn=centred):
        return original(self, *args, **kwargs)
