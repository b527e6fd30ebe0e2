from __future__ import annotations

from typing import Any, Optional

import torch.nn as nn
from transformers import GPT2Config, GPT2Model

from coati.models.base import Critic


class GPTCritic(Critic):
    def __init__(
        self,
        pretrained: Optional[str] = None,
        config: Optional[GPT2Config] = None,
        lora_rank: int = 0,
        lora_train_bias: str = "none",
        **kwargs: Any,
    ) -> None:
        if pretrained is not None:
            model = GPT2Model.from_pretrained(pretrained)
        else:
            model = GPT2Model(GPT2Config() if config is None else config)
        width = model.config.n_embd
        value_head = nn.Linear(width, 1)
        super().__init__(model, value_head, lora_rank, lora_train_bias, **kwargs)
