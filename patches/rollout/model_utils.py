"""Functions of ``coati.models.utils`` on logits and rewards.

Letters: B rows, A action columns, S sequence columns, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Optional

from coati_ext import choice, tensors

if TYPE_CHECKING:
    from torch import Tensor


def log_probs_of_actions(logits: Any, sequences: Tensor, num_actions: int) -> Tensor:
    """Log-probabilities (B, A) of the last tokens, from logits (B, S, V) or a model output.

    In a training step the input already holds log-probabilities (B, A), which are returned as is.
    As in upstream, logits beyond the sequences are not used, and A is less than S.
    """
    logits = logits if hasattr(logits, "dim") else logits["logits"]
    if logits.dim() == 2:
        log_probs: Tensor = logits
        return log_probs
    rows, columns = sequences.shape
    first, end, _ = slice(-num_actions, None).indices(columns - 1)
    return tensors.selected_log_probs(logits[:rows, first:end], sequences[:, first + 1 : end + 1])


def log_probs_of_output(output: Any, sequences: Tensor, num_actions: int) -> Tensor:
    """As :func:`log_probs_of_actions`, with the argument names of G1."""
    return log_probs_of_actions(output, sequences, num_actions)


def reward_of_answers(
    original: Callable[..., Any],
    r: Any,
    kl_coef: float,
    log_probs: Tensor,
    log_probs_base: Tensor,
    action_mask: Optional[Tensor] = None,
) -> Any:
    """Rewards of whole answers, (B,), for callers other than our G1 and G2 makers.

    Shapes that are not those of a rollout are left to upstream's function.
    """
    import torch

    if kl_coef <= 0.0:
        return r
    mask, log_ratio = _masked_ratio(log_probs, log_probs_base, action_mask)
    score = torch.as_tensor(r, device=log_ratio.device)
    if mask is None or score.dim() > 1 or score.numel() not in (1, len(mask)):
        return original(r, kl_coef, log_probs, log_probs_base, action_mask)
    score = score.expand(len(mask))
    return choice("shape_reward")(score, log_ratio, mask, kl_coef).sum(dim=1)


def reward_of_tokens(
    original: Callable[..., Any],
    r: Any,
    kl_coef: float,
    log_probs: Tensor,
    log_probs_base: Tensor,
    action_mask: Optional[Tensor] = None,
    reward_eps: float = 5,
) -> Any:
    """Rewards and KL of each action, (B, A) each, for callers other than our G3 and G4 makers.

    Shapes that are not those of a rollout are left to upstream's function.
    """
    mask, log_ratio = _masked_ratio(log_probs, log_probs_base, action_mask)
    if mask is None or r.shape not in ((len(mask),), (len(mask), 1)):
        return original(r, kl_coef, log_probs, log_probs_base, action_mask, reward_eps)
    score = r.reshape(-1).clamp(-reward_eps, reward_eps)
    rewards = choice("shape_reward")(score, log_ratio, mask, kl_coef)
    return rewards, tensors.kl_estimate(log_ratio, "k3")


def _masked_ratio(log_probs: Tensor, base: Tensor, action_mask: Optional[Tensor]) -> Any:
    """The mask and the masked log-ratio, (B, A) each; no mask where the shapes are others."""
    log_ratio = log_probs - base
    mask = tensors.real_actions(log_ratio, action_mask)
    if log_ratio.dim() != 2 or mask.shape != log_ratio.shape:
        return None, log_ratio
    return mask, log_ratio.masked_fill(~mask, 0)
