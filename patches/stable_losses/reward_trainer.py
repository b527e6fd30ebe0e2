"""``RewardModelTrainer``: its default loss, and what its steps and evaluations tell observers.

Letters: B pairs of a batch, N pairs of an evaluation.
"""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING, Any, Callable, List

from coati_ext import announce
from coati_ext.rollout.models import attributes

if TYPE_CHECKING:
    from torch import Tensor


def default_loss(original: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """Construct the trainer; ``loss_fn=None`` becomes ``LogSigLoss()``."""
    from coati.models import LogSigLoss

    call = signature(original).bind(*args, **kwargs)
    if call.arguments.get("loss_fn") is None:
        call.arguments["loss_fn"] = LogSigLoss()
    original(*call.args, **call.kwargs)


def tell_of_steps(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """Train as upstream does, and tell of the rewards (B,) that each loss was given."""
    loss = self.loss_fn

    def heard(chosen_reward: Tensor, reject_reward: Tensor) -> Any:
        announce(
            "reward_step",
            trainer=self,
            chosen_reward=chosen_reward.detach(),
            reject_reward=reject_reward.detach(),
        )
        return loss(chosen_reward, reject_reward)

    with attributes(self, loss_fn=heard):
        return original(self, *args, **kwargs)


def tell_of_evaluation(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """Evaluate as upstream does, and tell of the rewards (N,) of all pairs.

    Every generation scores the chosen answers of a batch and then the rejected ones.
    """
    import torch

    heard = _Heard(self.model)
    with attributes(self, model=heard):
        returned = original(self, *args, **kwargs)
    if heard.rewards:
        chosen_reward, reject_reward = (torch.cat(heard.rewards[first::2]) for first in (0, 1))
        announce(
            "reward_evaluated",
            trainer=self,
            chosen_reward=chosen_reward,
            reject_reward=reject_reward,
        )
    return returned


class _Heard:
    """A reward model, with the rewards that it gave."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.rewards: List[Tensor] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        reward = self._model(*args, **kwargs)
        self.rewards.append(reward.detach().clone())  # upstream averages it over ranks in place
        return reward

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)
