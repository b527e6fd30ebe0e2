from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, Callable, Optional

import torch

from coati.models.base import Actor, Critic, RewardModel


@dataclass
class Experience:
    """A batch of rollouts; B rows, S columns, A actions.

    sequences (B, S), action_log_probs (B, A), values (B,), reward (B,), advantages (B, 1),
    attention_mask (B, S), action_mask (B, A).
    """

    sequences: torch.Tensor
    action_log_probs: torch.Tensor
    values: torch.Tensor
    reward: torch.Tensor
    advantages: torch.Tensor
    attention_mask: Optional[torch.LongTensor]
    action_mask: Optional[torch.BoolTensor]

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                setattr(self, field.name, change(value))

    @torch.no_grad()
    def to_device(self, device: torch.device) -> None:
        self._map(lambda tensor: tensor.to(device))

    def pin_memory(self) -> Experience:
        self._map(lambda tensor: tensor.pin_memory())
        return self


class ExperienceMaker(ABC):
    def __init__(
        self, actor: Actor, critic: Critic, reward_model: RewardModel, initial_model: Actor
    ) -> None:
        super().__init__()
        self.actor = actor
        self.critic = critic
        self.reward_model = reward_model
        self.initial_model = initial_model

    @abstractmethod
    def make_experience(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **generate_kwargs: Any
    ) -> Experience: ...
