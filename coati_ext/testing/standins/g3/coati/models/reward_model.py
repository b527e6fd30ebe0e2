from __future__ import annotations

from typing import Any, Optional

import torch
import torch.nn as nn
from transformers import PretrainedConfig

from coati.models import BaseModel


class RewardModel(BaseModel):
    """One reward per row, read at the last attended column.

    The mask is multiplied with column numbers, so None is a TypeError in spite of the default
    and a row without a real token reads column 0 (D24).  Position ids are not passed (D23).
    """

    def __init__(
        self,
        pretrained: Optional[str] = None,
        config: Optional[PretrainedConfig] = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(pretrained=pretrained, config=config, **kwargs)
        width = self.last_hidden_state_size
        self.value_head = nn.Linear(width, 1)
        self.value_head.weight.data.normal_(mean=0.0, std=1 / (width + 1))

    def forward(
        self, input_ids: torch.LongTensor, attention_mask: Optional[torch.Tensor] = None
    ) -> torch.Tensor:
        hidden = self.model(input_ids, attention_mask=attention_mask)["last_hidden_state"]
        columns = torch.arange(input_ids.size(1), device=input_ids.device)
        last = (attention_mask * columns).max(dim=1).values
        pooled = hidden[torch.arange(hidden.size(0)), last]
        return self.value_head(pooled.type(self.value_head.weight.dtype)).squeeze(-1)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.model.get_output_embeddings()
