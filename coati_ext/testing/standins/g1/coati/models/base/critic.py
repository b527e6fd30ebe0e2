from __future__ import annotations

from typing import Optional

import torch
import torch.nn as nn

from coati.models.lora import LoRAModule
from coati.models.utils import masked_mean


class Critic(LoRAModule):
    """One value per row.

    By default the mean over every column but the last, answer and pads included (D2); with
    `use_action_mask` the mean over the prompt.
    """

    def __init__(
        self,
        model: nn.Module,
        value_head: nn.Module,
        lora_rank: int = 0,
        lora_train_bias: str = "none",
        use_action_mask: bool = False,
    ) -> None:
        super().__init__(lora_rank=lora_rank, lora_train_bias=lora_train_bias)
        self.model = model
        self.value_head = value_head
        self.use_action_mask = use_action_mask
        self.convert_to_lora()

    def forward(
        self,
        sequences: torch.LongTensor,
        action_mask: Optional[torch.Tensor] = None,
        attention_mask: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        hidden = self.model(sequences, attention_mask=attention_mask)["last_hidden_state"]
        values = self.value_head(hidden).squeeze(-1)
        if self.use_action_mask and action_mask is not None:
            prompt = slice(None, -action_mask.size(1))
            return masked_mean(values[:, prompt], attention_mask[:, prompt], dim=1)
        return values[:, :-1].mean(dim=1)
