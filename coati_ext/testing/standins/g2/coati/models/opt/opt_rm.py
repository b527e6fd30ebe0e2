from __future__ import annotations

from typing import Optional

import torch.nn as nn
from transformers import OPTConfig, OPTModel

from coati.models.base import RewardModel


class OPTRM(RewardModel):
    def __init__(
        self,
        pretrained: Optional[str] = None,
        config: Optional[OPTConfig] = None,
        lora_rank: int = 0,
        lora_train_bias: str = "none",
    ) -> None:
        if pretrained is not None:
            model = OPTModel.from_pretrained(pretrained)
        else:
            model = OPTModel(OPTConfig() if config is None else config)
        width = model.config.word_embed_proj_dim
        value_head = nn.Linear(width, 1)
        value_head.weight.data.normal_(mean=0.0, std=1 / (width + 1))
        super().__init__(model, value_head, lora_rank, lora_train_bias)
