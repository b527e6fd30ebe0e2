from __future__ import annotations

from typing import Any, Optional

import torch
import torch.nn as nn
from transformers import PretrainedConfig

from coati.models import BaseModel


class Critic(BaseModel):
    """One value per column (B, S), each read after that column's token (D11)."""

    def __init__(
        self,
        pretrained: Optional[str] = None,
        config: Optional[PretrainedConfig] = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(pretrained=pretrained, config=config, **kwargs)
        self.value_head = nn.Linear(self.last_hidden_state_size, 1)

    def forward(
        self, input_ids: torch.LongTensor, attention_mask: Optional[torch.Tensor] = None
    ) -> torch.Tensor:
        hidden = self.model(input_ids, attention_mask=attention_mask)["last_hidden_state"]
        return self.value_head(hidden.type(self.value_head.weight.dtype)).squeeze(-1)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.model.get_output_embeddings()
