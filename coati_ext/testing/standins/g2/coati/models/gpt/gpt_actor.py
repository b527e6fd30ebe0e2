from __future__ import annotations

from typing import Any, Optional

from transformers import GPT2Config, GPT2LMHeadModel

from coati.models.base import Actor


class GPTActor(Actor):
    def __init__(
        self,
        pretrained: Optional[str] = None,
        config: Optional[GPT2Config] = None,
        checkpoint: bool = False,
        lora_rank: int = 0,
        lora_train_bias: str = "none",
        **kwargs: Any,
    ) -> None:
        if pretrained is not None:
            model = GPT2LMHeadModel.from_pretrained(pretrained)
        else:
            model = GPT2LMHeadModel(GPT2Config() if config is None else config)
        if checkpoint:
            model.gradient_checkpointing_enable()
        super().__init__(model, lora_rank, lora_train_bias, **kwargs)
