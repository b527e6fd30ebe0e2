"""Low-rank adapters; embeddings and the PiSSA initialisation are left out of the stand-in."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import List, Optional

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass
class LoraManager:
    able_to_merge: bool = True


lora_manager = LoraManager()


@dataclass
class LoraConfig:
    r: int = 0
    lora_alpha: int = 32
    linear_lora_dropout: float = 0.1
    embedding_lora_dropout: float = 0.0
    lora_train_bias: str = "none"
    lora_initialization_method: str = "kaiming_uniform"
    target_modules: Optional[List[str]] = None

    @classmethod
    def from_file(cls, config_file: str) -> LoraConfig:
        with open(config_file) as stream:
            return cls(**json.load(stream))


class LoraLinear(nn.Module):
    """A frozen linear layer plus a trainable low-rank term, merged by `eval()`."""

    def __init__(self, linear: nn.Linear, config: LoraConfig) -> None:
        super().__init__()
        self.weight = linear.weight
        self.bias = linear.bias
        self.out_features, self.in_features = self.weight.shape
        self.lora_A = nn.Parameter(self.weight.new_zeros((config.r, self.in_features)))
        self.lora_B = nn.Parameter(self.weight.new_zeros((self.out_features, config.r)))
        self.lora_dropout = nn.Dropout(config.linear_lora_dropout)
        self.scaling = config.lora_alpha / config.r
        self.merged = False
        self.weight.requires_grad = False
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def train(self, mode: bool = True) -> LoraLinear:
        self.training = mode
        if mode and self.merged:
            raise NotImplementedError("a merged layer cannot be trained again")
        if not mode and not self.merged and lora_manager.able_to_merge:
            self.weight.data += self.lora_B @ self.lora_A * self.scaling
            del self.lora_A, self.lora_B
            self.merged = True
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        plain = F.linear(x, self.weight, self.bias)
        if self.merged:
            return plain
        return plain + self.lora_dropout(x) @ self.lora_A.t() @ self.lora_B.t() * self.scaling


def _swap_linear_layers(module: nn.Module, lora_config: LoraConfig) -> None:
    wanted = lora_config.target_modules
    for name, child in module.named_children():
        if not isinstance(child, nn.Linear):
            _swap_linear_layers(child, lora_config)
        elif wanted is None or any(name in target for target in wanted):
            setattr(module, name, LoraLinear(child, lora_config))


def convert_to_lora_module(module: nn.Module, lora_config: LoraConfig) -> nn.Module:
    if lora_config.r > 0:
        for name, parameter in module.named_parameters():
            parameter.requires_grad = "bias" in name and lora_config.lora_train_bias == "all"
        _swap_linear_layers(module, lora_config)
    return module
