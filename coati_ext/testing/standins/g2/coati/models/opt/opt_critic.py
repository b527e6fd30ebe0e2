from __future__ import annotations

from typing import Any, Optional

import torch.nn as nn
from transformers import OPTConfig, OPTModel

from coati.models.base import Critic


class OPTCritic(Critic):
    def __init__(
        self,
        pretrained: Optional[str] = None,
        config: Optional[OPTConfig] = None,
        lora_rank: int = 0,
        lora_train_bias: str = "none",
        **kwargs: Any,
    ) -> None:
        if pretrained is not None:
            model = OPTModel.from_pretrained(pretrained)
        else:
            model = OPTModel(OPTConfig() if config is None else config)
        width = model.config.word_embed_proj_dim
        value_head = nn.Linear(width, 1)
        super().__init__(model, value_head, lora_rank, lora_train_bias, **kwargs)
