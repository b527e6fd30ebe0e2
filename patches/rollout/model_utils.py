"""Functions of ``coati.models.utils`` on logits and rewards.

Letters: B rows, A action columns, S sequence columns, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Optional

from coati_ext import choice, tensors

if TYPE_CHECKING:
    from torch import Tensor


def log_probs_of_actions(logits: Any, sequences: Tensor, num_actions: int) -> Tensor:
    """Log-probabilities (B, A) of the last tokens, from logits (B, S, V) or a model output.

    In a training step the input already holds log-probabilities (B, A), which are returned as is.
    """
    logits = logits if hasattr(logits, "dim") else logits["logits"]
    if logits.dim() == 2:
        log_probs: Tensor = logits
        return log_probs
    return tensors.selected_log_probs(logits[:, -num_actions - 1 : -1], sequences[:, -num_actions:])


def log_probs_of_output(output: Any, sequences: Tensor, num_actions: int) -> Tensor:
    """As :func:`log_probs_of_actions`, with the argument names of G1."""
    return log_probs_of_actions(output, sequences, num_actions)


def reward_of_answers(
    r: Any,
    kl_coef: float,
    log_probs: Tensor,
    log_probs_base: Tensor,
    action_mask: Optional[Tensor] = None,
) -> Any:
    """Rewards of whole answers, (B,), for callers other than our G1 and G2 makers."""
    if kl_coef <= 0.0:
        return r
    mask, log_ratio = _masked_ratio(log_probs, log_probs_base, action_mask)
    return choice("shape_reward")(r, log_ratio, mask, kl_coef).sum(dim=1)


def reward_of_tokens(
    r: Any,
    kl_coef: float,
    log_probs: Tensor,
    log_probs_base: Tensor,
    action_mask: Optional[Tensor] = None,
    reward_eps: float = 5,
) -> Any:
    """Rewards and KL of each action, (B, A) each, for callers other than our G3 and G4 makers."""
    mask, log_ratio = _masked_ratio(log_probs, log_probs_base, action_mask)
    rewards = choice("shape_reward")(r.clamp(-reward_eps, reward_eps), log_ratio, mask, kl_coef)
    return rewards, tensors.kl_estimate(log_ratio, "k3")


def _masked_ratio(log_probs: Tensor, base: Tensor, action_mask: Optional[Tensor]) -> Any:
    mask = tensors.real_actions(log_probs, action_mask)
    return mask, (log_probs - base).masked_fill(~mask, 0)
