from __future__ import annotations

import logging
from typing import Any, List, Optional, Tuple

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, PreTrainedTokenizer

from coati.dataset.utils import find_first_occurrence_subsequence
from coati.models import Critic, RewardModel
from coati.models.generation import generate
from coati.models.utils import calc_action_log_probs, compute_reward

from .base import Experience, ExperienceMaker

logger = logging.getLogger(__name__)


class NaiveExperienceMaker(ExperienceMaker):
    """Rolls out, scores, and estimates one advantage per answer token."""

    def __init__(
        self,
        actor: PreTrainedModel,
        critic: Critic,
        reward_model: RewardModel,
        initial_model: PreTrainedModel,
        tokenizer: PreTrainedTokenizer,
        kl_coef: float = 0.01,
        gamma: float = 1.0,
        lam: float = 0.95,
    ) -> None:
        super().__init__(actor, critic, reward_model, initial_model)
        self.tokenizer = tokenizer
        self.kl_coef = kl_coef
        self.gamma = gamma
        self.lam = lam

    @torch.no_grad()
    def calculate_advantage(
        self, value: torch.Tensor, reward: torch.Tensor, num_actions: int
    ) -> torch.Tensor:
        """Generalised advantage estimates (B, A)."""
        after = torch.cat([value[:, 1:num_actions], torch.zeros_like(value[:, :1])], dim=1)
        delta = reward[:, :num_actions] + self.gamma * after - value[:, :num_actions]
        advantages = [delta[:, -1]]
        for t in reversed(range(num_actions - 1)):
            advantages.append(delta[:, t] + self.gamma * self.lam * advantages[-1])
        return torch.stack(advantages[::-1], dim=1)

    def _kept(self, sequences: torch.Tensor, start: int, stop: Optional[List[int]]) -> torch.Tensor:
        """(B, S), false after the end token or the stop sequence; `stop` is ONE sequence (D8)."""
        if stop is None:
            if self.tokenizer.eos_token_id is None:
                return torch.ones_like(sequences, dtype=torch.bool)
            not_ended = (sequences[:, start:] == self.tokenizer.eos_token_id).cumsum(dim=-1) == 0
            return F.pad(not_ended, (1 + start, -1), value=True)
        kept = torch.ones_like(sequences, dtype=torch.bool)
        ids = torch.LongTensor(stop).to(sequences.device)
        for row, sequence in zip(kept, sequences):
            found = find_first_occurrence_subsequence(sequence[start:], ids)
            if found == -1:
                logger.warning("a generated sequence does not contain stop_token_ids")
            else:
                row[start + found + len(stop) :] = False
        return kept

    def _right_padded(
        self, sequences: torch.Tensor, ends: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask (B, S) for the reward model and the critic.

        The last kept token is dropped and one pad is attended in its place (D9).
        """
        ids = torch.full_like(sequences, self.tokenizer.pad_token_id)
        mask = torch.zeros_like(sequences, dtype=torch.bool)
        for i, (sequence, end) in enumerate(zip(sequences, ends)):
            first = (sequence != self.tokenizer.pad_token_id).nonzero()[0, 0]
            text = sequence[first:end]
            ids[i, : len(text)] = text
            mask[i, : len(text) + 1] = True
        return ids, mask

    @torch.no_grad()
    def make_experience(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **generate_kwargs: Any
    ) -> Experience:
        for model in (self.actor, self.critic, self.initial_model, self.reward_model):
            model.eval()
        pad = self.tokenizer.pad_token_id
        torch.manual_seed(41)  # every rollout draws the same numbers (D15)
        sequences = generate(self.actor, input_ids, self.tokenizer, **generate_kwargs)
        missing = generate_kwargs["max_length"] - sequences.size(1)
        sequences = F.pad(sequences, (0, missing), value=pad)

        # Masked by token id: with pad == eos the end token disappears too (D5).
        attention_mask = None if pad is None else sequences.ne(pad).long()
        start = input_ids.size(1)
        kept = self._kept(sequences, start, generate_kwargs.get("stop_token_ids"))
        ends = kept.sum(dim=-1) - 1
        kept[:, :start] = False
        # With nothing generated this takes every column, and rewards cannot be placed (D20).
        action_mask = kept[:, 1:][:, -(sequences.size(1) - start) :]
        num_actions = action_mask.size(1)

        log_probs, log_probs_base = (
            calc_action_log_probs(
                model(input_ids=sequences, attention_mask=attention_mask)["logits"],
                sequences,
                num_actions,
            )
            for model in (self.actor, self.initial_model)
        )
        ids_rm, mask_rm = self._right_padded(sequences, ends)
        r = self.reward_model(input_ids=ids_rm, attention_mask=mask_rm)
        reward, kl = compute_reward(
            r, self.kl_coef, log_probs, log_probs_base, action_mask=action_mask
        )
        # Sliced as if the critic had seen the left-padded sequences (D10).
        value = self.critic(input_ids=ids_rm, attention_mask=mask_rm)
        value = value[:, -num_actions:] * action_mask
        advantages = self.calculate_advantage(value, reward, num_actions)
        return Experience(
            sequences, log_probs, value, r, kl, advantages, attention_mask, action_mask
        )
