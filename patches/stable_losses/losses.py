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
    ratio, _ = tensors.policy_ratio(log_probs, old_log_probs, action_mask)
    return tensors.policy_loss(ratio, advantages, action_mask, self.clip_eps)


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

    if action_mask is not None:  # upstream weighs log-ratios by a mask of fractions, too
        log_probs, old_log_probs = log_probs * action_mask, old_log_probs * action_mask
    ratio, mask = tensors.policy_ratio(log_probs, old_log_probs, action_mask)
    real = ratio.detach().masked_fill(~mask, 0)
    count = mask.expand_as(real).sum().to(real.dtype)
    summed, count = total(torch.stack([real.sum(), count])).unbind()
    skip = bool(summed > self.skip_threshold * count)
    loss = tensors.policy_loss(ratio.clamp(0.0, 10.0), advantages, action_mask, self.clip_eps)
    return loss, skip, ratio.detach().max()


def value_loss(
    self: Any,
    values: Tensor,
    old_values: Tensor,
    advantage: Tensor,
    action_mask: Optional[Tensor] = None,
) -> Tensor:
    """PPO's value loss of values (B, A), a scalar, for G3 and G4."""
    returns = tensors.widened(advantage) + tensors.widened(old_values)
    return tensors.value_loss(values, old_values, returns, action_mask, self.clip_eps)


def value_loss_of_reward(
    original: Callable[..., Tensor],
    self: Any,
    values: Tensor,
    old_values: Tensor,
    reward: Tensor,
    action_mask: Optional[Tensor] = None,
) -> Tensor:
    """PPO's value loss for G1 and G2: upstream's, over the real actions if the mask is of values.

    G1's trainer gives a mask (B, A) with values (B,), which is no mask of theirs.
    """
    if action_mask is None or action_mask.shape != values.shape:
        return original(self, values, old_values, reward)
    real = action_mask != 0
    filled = (tensors.widened(item).masked_fill(~real, 0) for item in (values, old_values, reward))
    share = real.numel() / real.sum().clamp(min=1)  # upstream averages over all columns
    return original(self, *filled) * share
