from __future__ import annotations

from typing import Optional

from transformers import OPTConfig, OPTForCausalLM

from coati.models.base import Actor


class OPTActor(Actor):
    def __init__(
        self,
        pretrained: Optional[str] = None,
        config: Optional[OPTConfig] = None,
        checkpoint: bool = False,
        lora_rank: int = 0,
        lora_train_bias: str = "none",
    ) -> None:
        if pretrained is not None:
            model = OPTForCausalLM.from_pretrained(pretrained)
        else:
            model = OPTForCausalLM(OPTConfig() if config is None else config)
        if checkpoint:
            model.gradient_checkpointing_enable()
        super().__init__(model, lora_rank, lora_train_bias)
