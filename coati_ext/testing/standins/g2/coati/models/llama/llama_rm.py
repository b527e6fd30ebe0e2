from __future__ import annotations

from typing import Optional

import torch.nn as nn
from transformers import LlamaConfig, LlamaModel

from coati.models.base import RewardModel


class LlamaRM(RewardModel):
    def __init__(
        self,
        pretrained: Optional[str] = None,
        config: Optional[LlamaConfig] = None,
        lora_rank: int = 0,
        lora_train_bias: str = "none",
    ) -> None:
        if pretrained is not None:
            model = LlamaModel.from_pretrained(pretrained)
        else:
            model = LlamaModel(LlamaConfig() if config is None else config)
        width = model.config.hidden_size
        value_head = nn.Linear(width, 1)
        value_head.weight.data.normal_(mean=0.0, std=1 / (width + 1))
        super().__init__(model, value_head, lora_rank, lora_train_bias)
