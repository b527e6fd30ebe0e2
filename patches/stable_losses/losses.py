"""``forward`` of the losses of ``coati.models.loss``. Letters: B rows, A action columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Optional, Tuple

from coati_ext import tensors

if TYPE_CHECKING:
    from torch import Tensor


def pairwise_loss(self: Any, chosen_reward: Tensor, reject_reward: Tensor) -> Tensor:
    """The pairwise loss of rewards (B,), a scalar."""
    return tensors.pairwise_loss(chosen_reward, reject_reward)


def policy_loss(
    self: Any,
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    action_mask: Optional[Tensor] = None,
) -> Tensor:
    """PPO's policy loss of log-probabilities (B, A), a scalar, for G1 and G2."""
    ratio, mask = tensors.policy_ratio(log_probs, old_log_probs, action_mask)
    return tensors.policy_loss(ratio, advantages, mask, self.clip_eps)


def policy_loss_or_skip(
    self: Any,
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    action_mask: Optional[Tensor] = None,
) -> Tuple[Tensor, bool, Tensor]:
    """PPO's policy loss, whether to skip the step, and the largest ratio, for G3 and G4.

    A step is skipped if the mean ratio over the real actions of all ranks exceeds the threshold.
    """
    import torch

    from coati_ext.rollout.ranks import total

    ratio, mask = tensors.policy_ratio(log_probs, old_log_probs, action_mask)
    real = ratio.detach().masked_fill(~mask, 0)
    summed, count = total(torch.stack([real.sum(), mask.sum().to(real.dtype)])).unbind()
    skip = bool(summed > self.skip_threshold * count)
    loss = tensors.policy_loss(ratio.clamp(0.0, 10.0), advantages, mask, self.clip_eps)
    return loss, skip, ratio.detach().max()


def value_loss(
    self: Any,
    values: Tensor,
    old_values: Tensor,
    advantage: Tensor,
    action_mask: Optional[Tensor] = None,
) -> Tensor:
    """PPO's value loss of values (B, A), a scalar, for G3 and G4."""
    returns = advantage + old_values
    return tensors.value_loss(values, old_values, returns, action_mask, self.clip_eps)


def value_loss_of_reward(
    original: Callable[..., Tensor],
    self: Any,
    values: Tensor,
    old_values: Tensor,
    reward: Tensor,
    action_mask: Optional[Tensor] = None,
) -> Tensor:
    """PPO's value loss for G1 and G2: upstream's for values (B,), ours, masked, for (B, A)."""
    if values.dim() == 1 or action_mask is None:
        return original(self, values, old_values, reward)
    return tensors.value_loss(values, old_values, reward, action_mask, self.clip_eps)
