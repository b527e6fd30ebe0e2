from __future__ import annotations

import logging
from typing import Any, Dict, List, Optional, Tuple, Union

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
        use_grpo: bool = False,
        num_generation: int = 8,
        inference_batch_size: Optional[int] = None,
        logits_forward_batch_size: int = 2,
    ) -> None:
        super().__init__(actor, critic, reward_model, initial_model)
        self.tokenizer = tokenizer
        self.kl_coef = kl_coef
        self.gamma = gamma
        self.lam = lam
        self.use_grpo = use_grpo
        self.num_generation = num_generation
        self.inference_batch_size = inference_batch_size
        self.logits_forward_batch_size = logits_forward_batch_size
        if use_grpo:
            assert self.critic is None, "GRPO takes no critic"
            assert num_generation > 1, "GRPO needs more than one answer to a prompt"
        else:
            assert self.critic is not None, "PPO needs a critic"

    @torch.inference_mode()  # so the advantages cannot be trained on as they are (D29)
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

    def _kept(self, sequences: torch.Tensor, start: int, stops: List[List[int]]) -> torch.Tensor:
        """(B, S), false after the first stop sequence; all true in a row without one (D20)."""
        kept = torch.ones_like(sequences, dtype=torch.bool)
        for row, sequence in zip(kept, sequences):
            found = [
                find_first_occurrence_subsequence(
                    sequence[start:], torch.tensor(stop, device=sequences.device)
                )
                for stop in stops
            ]
            first = min((at for at in found if at != -1), default=-1)
            if first == -1:
                logger.warning("a generated sequence does not contain stop_token_ids")
            else:
                row[start + first + len(stops[found.index(first)]) :] = False
        return kept

    def _logits(self, model: Any, inputs: Dict[str, torch.Tensor]) -> torch.Tensor:
        step = self.logits_forward_batch_size
        parts = []
        for i in range(0, len(inputs["input_ids"]), step):
            rows = {name: tensor[i : i + step] for name, tensor in inputs.items()}
            parts.append(model(**rows, use_cache=False)["logits"])
        return torch.cat(parts, dim=0)

    def _roll_out(
        self, input_ids: torch.Tensor, gt_answer: Any, generate_kwargs: Dict[str, Any]
    ) -> Dict[str, torch.Tensor]:
        """Everything of one chunk of prompts that does not need the whole batch."""
        pad = self.tokenizer.pad_token_id
        sequences = generate(self.actor, input_ids, self.tokenizer, **generate_kwargs)
        missing = generate_kwargs["max_length"] - sequences.size(1)
        sequences = F.pad(sequences, (0, missing), value=pad)
        # Masked by token id: with pad == eos the end token disappears too (D5).
        attention_mask = None if pad is None else sequences.ne(pad).long()
        start = input_ids.size(1)
        kept = self._kept(sequences, start, generate_kwargs["stop_token_ids"])
        ends = kept.sum(dim=-1)
        kept[:, :start] = False
        # With nothing generated this takes every column, and rewards cannot be placed (D20).
        action_mask = kept[:, 1:][:, -(sequences.size(1) - start) :]
        inputs = {"input_ids": sequences, "attention_mask": attention_mask}
        with torch.inference_mode():
            logits, logits_base = (
                self._logits(model, inputs) for model in (self.actor, self.initial_model)
            )
            log_probs, log_probs_base = (
                calc_action_log_probs(each, sequences, action_mask.size(1))
                for each in (logits, logits_base)
            )
        ids_rm, mask_rm, starts = self._right_padded(sequences, ends)
        r = self.reward_model(
            input_ids=ids_rm,
            attention_mask=mask_rm,
            response_start=[start - first for first in starts],
            response_end=[end - first for end, first in zip(ends, starts)],
            gt_answer=gt_answer,
        )
        return {
            "sequences": sequences,
            "attention_mask": attention_mask,
            "action_mask": action_mask,
            "ids_rm": ids_rm,
            "mask_rm": mask_rm,
            "r": r,
            "log_probs": log_probs,
            "log_probs_base": log_probs_base,
        }

    def _right_padded(
        self, sequences: torch.Tensor, ends: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor, List[torch.Tensor]]:
        """Ids and mask (B, S) for the reward model and the critic, and where each text began.

        The stop token stays, but one pad after it is attended as well (D9).
        """
        ids = torch.full_like(sequences, self.tokenizer.pad_token_id)
        mask = torch.zeros_like(sequences, dtype=torch.bool)
        starts = []
        for i, (sequence, end) in enumerate(zip(sequences, ends)):
            first = (sequence != self.tokenizer.pad_token_id).nonzero()[0, 0]
            text = sequence[first:end]
            ids[i, : len(text)] = text
            mask[i, : len(text) + 1] = True
            starts.append(first)
        return ids, mask, starts

    def _group_advantages(
        self, r: torch.Tensor, log_ratio: torch.Tensor, action_mask: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """GRPO: reward with the KL penalty (B,), the penalty (B,) and advantages (B,) (D33)."""
        kl = (-self.kl_coef * log_ratio * action_mask).sum(dim=-1) / action_mask.sum(dim=-1)
        r = kl + r
        groups = r.view(-1, self.num_generation)
        mean = groups.mean(dim=1).repeat_interleave(self.num_generation)
        std = groups.std(dim=1).repeat_interleave(self.num_generation)
        return r, kl, (r - mean) / (std + 1e-4)

    @torch.no_grad()
    def make_experience(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        gt_answer: Any = None,
        **generate_kwargs: Any,
    ) -> Experience:
        for model in (self.actor, self.critic, self.initial_model, self.reward_model):
            if model:
                model.eval()
        stops = _as_alternatives(generate_kwargs.get("stop_token_ids"))
        generate_kwargs["stop_token_ids"] = stops
        torch.manual_seed(41)  # every rollout draws the same numbers (D15)
        if self.use_grpo:
            input_ids = input_ids.repeat_interleave(self.num_generation, dim=0)
            gt_answer = [answer for answer in gt_answer for _ in range(self.num_generation)]
        if self.inference_batch_size is None:
            self.inference_batch_size = input_ids.size(0)  # remembered for every later batch (D19)

        chunks = []
        for s in range(0, input_ids.size(0), self.inference_batch_size):
            rows = slice(s, s + self.inference_batch_size)
            chunks.append(self._roll_out(input_ids[rows], gt_answer[rows], generate_kwargs))
        whole = {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}
        action_mask, r, log_probs = whole["action_mask"], whole["r"], whole["log_probs"]

        if self.use_grpo:
            log_ratio = log_probs - whole["log_probs_base"]
            r, kl, advantages = self._group_advantages(r, log_ratio, action_mask)
            value = r
        else:
            reward, kl = compute_reward(
                r, self.kl_coef, log_probs, whole["log_probs_base"], action_mask=action_mask
            )
            # Sliced as if the critic had seen the left-padded sequences (D10).
            value = self.critic(input_ids=whole["ids_rm"], attention_mask=whole["mask_rm"])
            value = value[:, -action_mask.size(1) :] * action_mask
            advantages = self.calculate_advantage(value, reward, action_mask.size(1))
        fields = (
            whole["sequences"],
            log_probs,
            value,
            r,
            kl,
            advantages,
            whole["attention_mask"],
            action_mask,
        )
        return Experience(*(field.cpu() for field in fields))


def _as_alternatives(stop_token_ids: Union[int, List[int], List[List[int]]]) -> List[List[int]]:
    """A list of stop sequences; a flat list is ONE sequence (D8), None a TypeError (D16)."""
    if isinstance(stop_token_ids, int):
        return [[stop_token_ids]]
    if isinstance(stop_token_ids[0], int):
        return [stop_token_ids]
    if isinstance(stop_token_ids[0], list):
        return stop_token_ids
    raise ValueError(f"stop_token_ids {stop_token_ids} is neither an id nor lists of ids")
