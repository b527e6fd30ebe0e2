from __future__ import annotations

import torch
import torch.nn as nn

from coati.models.lora import LoRAModule

from .reward_model import last_attended


class Critic(LoRAModule):
    """One value per row, read after the answer it should be a baseline for (D3)."""

    def __init__(
        self,
        model: nn.Module,
        value_head: nn.Module,
        lora_rank: int = 0,
        lora_train_bias: str = "none",
    ) -> None:
        super().__init__(lora_rank=lora_rank, lora_train_bias=lora_train_bias)
        self.model = model
        self.value_head = value_head
        self.convert_to_lora()

    def forward(self, sequences: torch.LongTensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.model(sequences, attention_mask=attention_mask)["last_hidden_state"]
        return self.value_head(last_attended(hidden, attention_mask)).squeeze(1)
