from __future__ import annotations

from typing import Optional

import torch
import torch.nn as nn

from coati.models.lora import LoRAModule


def last_attended(hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Hidden states (B, H) at the last attended column; a row without one reads column 0 (D24)."""
    columns = torch.arange(hidden.size(1), device=hidden.device)
    last = (attention_mask * columns).max(dim=1).values
    return hidden[torch.arange(hidden.size(0)), last]


class RewardModel(LoRAModule):
    """One reward per row; position ids are never passed, so padding moves GPT-2 (D23)."""

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

    def forward(self, sequences: torch.LongTensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.model(sequences, attention_mask=attention_mask)["last_hidden_state"]
        return self.value_head(last_attended(hidden, attention_mask)).squeeze(1)
