from __future__ import annotations

from typing import Any, Optional

import torch
import torch.nn as nn

from coati.models.lora import LoRAModule


class Actor(LoRAModule):
    def __init__(self, model: nn.Module, lora_rank: int = 0, lora_train_bias: str = "none") -> None:
        super().__init__(lora_rank=lora_rank, lora_train_bias=lora_train_bias)
        self.model = model
        self.convert_to_lora()

    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: Optional[torch.Tensor] = None,
        **model_kwargs: Any,
    ) -> torch.Tensor:
        return self.model(input_ids, attention_mask=attention_mask, **model_kwargs)
