from __future__ import annotations

from typing import Optional

from transformers import BloomConfig, BloomForCausalLM

from coati.models.base import Actor


class BLOOMActor(Actor):
    def __init__(
        self,
        pretrained: Optional[str] = None,
        config: Optional[BloomConfig] = None,
        checkpoint: bool = False,
        lora_rank: int = 0,
        lora_train_bias: str = "none",
    ) -> None:
        if pretrained is not None:
            model = BloomForCausalLM.from_pretrained(pretrained)
        else:
            model = BloomForCausalLM(BloomConfig() if config is None else config)
        if checkpoint:
            model.gradient_checkpointing_enable()
        super().__init__(model, lora_rank, lora_train_bias)
