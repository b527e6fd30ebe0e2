"""What upstream asks of critic, actor and logits, in the frame of the experience.

Letters: B rows, A action columns, S sequence columns, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Optional

from coati_ext import choice, tensors
from coati_ext.rollout.models import frame_inputs, head_dtype, without_dropout

if TYPE_CHECKING:
    from torch import Tensor


def critic_g1(
    self: Any,
    sequences: Tensor,
    action_mask: Optional[Tensor] = None,
    attention_mask: Optional[Tensor] = None,
) -> Tensor:
    """The value before each token, (B, S), for G1."""
    return _values_before(self, sequences, attention_mask)


def critic_g2(self: Any, sequences: Tensor, attention_mask: Optional[Tensor] = None) -> Tensor:
    """The value before each token, (B, S), for G2."""
    return _values_before(self, sequences, attention_mask)


def critic_g3(self: Any, input_ids: Tensor, attention_mask: Optional[Tensor] = None) -> Tensor:
    """The value before each token, (B, S), for G3 and G4."""
    return _values_before(self, input_ids, attention_mask)


def _values_before(self: Any, input_ids: Tensor, attention_mask: Optional[Tensor]) -> Tensor:
    """Column t holds the value of the state before token t; column 0, before which there is none,
    that after its own token. The trainers' slice of the last A columns is right for it.
    """
    import torch

    mask = tensors.token_mask(input_ids, attention_mask)
    hidden = self.model(input_ids, **frame_inputs(self.model, mask))["last_hidden_state"]
    before = torch.cat([hidden[:, :1], hidden[:, :-1]], dim=1)
    values: Tensor = self.value_head(before.to(head_dtype(self.value_head, before.dtype)))
    return values.squeeze(-1)


def actor_g1a(
    self: Any, sequences: Tensor, num_actions: int, attention_mask: Optional[Tensor] = None
) -> Tensor:
    """The log-probabilities of the last actions, (B, A), for the actor before v0.3.1."""
    mask = tensors.token_mask(sequences, attention_mask)
    output = self.model(sequences, **frame_inputs(self.model, mask))
    return log_probs_of_actions(output, sequences, num_actions)


def log_probs_of_actions(logits: Any, sequences: Tensor, num_actions: int) -> Tensor:
    """Log-probabilities (B, A) of the last tokens, from logits (B, S, V) or an output with them.

    In a training step they come computed already: (B, A) is given back as it is.
    """
    logits = logits if hasattr(logits, "dim") else logits["logits"]
    if logits.dim() == 2:
        log_probs: Tensor = logits
        return log_probs
    return tensors.selected_log_probs(logits[:, -num_actions - 1 : -1], sequences[:, -num_actions:])


def log_probs_of_output(output: Any, sequences: Tensor, num_actions: int) -> Tensor:
    """As :func:`log_probs_of_actions`, under the names of G1."""
    return log_probs_of_actions(output, sequences, num_actions)


def reward_of_answers(
    r: Any,
    kl_coef: float,
    log_probs: Tensor,
    log_probs_base: Tensor,
    action_mask: Optional[Tensor] = None,
) -> Any:
    """The rewards of whole answers, (B,), for other makers of G1 and G2."""
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
    """Rewards and KL of each action, (B, A) each, for other makers of G3 and G4."""
    mask, log_ratio = _masked_ratio(log_probs, log_probs_base, action_mask)
    rewards = choice("shape_reward")(r.clamp(-reward_eps, reward_eps), log_ratio, mask, kl_coef)
    return rewards, tensors.kl_estimate(log_ratio, "k3")


def _masked_ratio(log_probs: Tensor, base: Tensor, action_mask: Optional[Tensor]) -> Any:
    mask = tensors.real_actions(log_probs, action_mask)
    return mask, (log_probs - base).masked_fill(~mask, 0)


def disable_dropout(model: Any) -> None:
    """Set every dropout probability to zero, functional dropout included. ``None`` is let be."""
    if model is not None:
        without_dropout(model)
