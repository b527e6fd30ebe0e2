from __future__ import annotations

from typing import Any, Optional

import torch
import torch.nn.functional as F

from coati.models.generation import generate
from coati.models.utils import calc_action_log_probs, compute_reward

from .base import Experience, ExperienceMaker


def _action_mask(answers: torch.Tensor, eos_token_id: Optional[int]) -> torch.Tensor:
    """(B, A), true up to and including the first end token."""
    if eos_token_id is None:
        return torch.ones_like(answers, dtype=torch.bool)
    not_ended = (answers == eos_token_id).cumsum(dim=-1) == 0
    return F.pad(not_ended, (1, -1), value=True)  # fails when nothing was generated (D20)


class NaiveExperienceMaker(ExperienceMaker):
    """Rolls out, scores, and takes the whole answer as one action (D4)."""

    @torch.no_grad()
    def make_experience(self, input_ids: torch.Tensor, **generate_kwargs: Any) -> Experience:
        for model in (self.actor, self.critic, self.initial_model, self.reward_model):
            model.eval()

        sequences = generate(self.actor, input_ids, **generate_kwargs)

        # Masked by token id: with pad == eos the end token disappears too (D5).
        attention_mask = None
        pad_token_id = generate_kwargs.get("pad_token_id")
        if pad_token_id is not None:
            attention_mask = sequences.ne(pad_token_id).long()
        answers = sequences[:, input_ids.size(1) :]
        action_mask = _action_mask(answers, generate_kwargs.get("eos_token_id"))
        num_actions = action_mask.size(1)

        log_probs, log_probs_base = (
            calc_action_log_probs(model(sequences, attention_mask), sequences, num_actions)
            for model in (self.actor, self.initial_model)
        )
        value = self.critic(sequences, action_mask, attention_mask)
        r = self.reward_model(sequences, attention_mask)
        reward = compute_reward(r, self.kl_coef, log_probs, log_probs_base, action_mask=action_mask)
        advantage = reward - value
        if advantage.ndim == 1:
            advantage = advantage[:, None]
        return Experience(
            sequences, log_probs, value, reward, advantage, attention_mask, action_mask
        )
