from __future__ import annotations

from typing import Optional

import torch
import torch.nn as nn

from coati.models.lora import LoRAModule


class RewardModel(LoRAModule):
    """One reward per row: the mean over every column but the last, pads included (D1)."""

    def __init__(
        self,
        model: nn.Module,
        value_head: Optional[nn.Module] = None,
        lora_rank: int = 0,
        lora_train_bias: str = "none",
    ) -> None:
        super().__init__(lora_rank=lora_rank, lora_train_bias=lora_train_bias)
        self.model = model
        self.convert_to_lora()
        if value_head is None:
            value_head = nn.Linear(model.config.n_embd, 1)
        elif value_head.out_features != 1:
            raise ValueError("the value head of a reward model must have one output")
        self.value_head = value_head

    def forward(
        self, sequences: torch.LongTensor, attention_mask: Optional[torch.Tensor] = None
    ) -> torch.Tensor:
        hidden = self.model(sequences, attention_mask=attention_mask)["last_hidden_state"]
        return self.value_head(hidden)[:, :-1].mean(dim=1).squeeze(1)
