"""Low-rank adapters on every linear layer."""

from __future__ import annotations

import math
from typing import Optional

import torch
import torch.nn as nn
import torch.nn.functional as F


class LoraLinear(nn.Module):
    """A frozen linear layer plus a trainable low-rank term that starts at zero."""

    def __init__(self, weight: nn.Parameter, bias: Optional[nn.Parameter], r: int = 0) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.out_features, self.in_features = weight.shape
        self.lora_A = nn.Parameter(weight.new_zeros((r, self.in_features)))
        self.lora_B = nn.Parameter(weight.new_zeros((self.out_features, r)))
        self.scaling = 1 / r
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low_rank = x @ self.lora_A.t() @ self.lora_B.t()
        return F.linear(x, self.weight, self.bias) + low_rank * self.scaling


def _swap_linear_layers(module: nn.Module, lora_rank: int) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            assert lora_rank <= child.in_features, "LoRA rank exceeds the layer's width"
            setattr(module, name, LoraLinear(child.weight, child.bias, lora_rank))
        else:
            _swap_linear_layers(child, lora_rank)


def _freeze_all_but_lora(module: nn.Module, lora_train_bias: str) -> None:
    for name, parameter in module.named_parameters():
        trains_bias = lora_train_bias == "all" and "bias" in name
        parameter.requires_grad = "lora_" in name or trains_bias
    if lora_train_bias == "lora_only":
        for layer in module.modules():
            if isinstance(layer, LoraLinear) and layer.bias is not None:
                layer.bias.requires_grad = True


def convert_to_lora_module(
    module: nn.Module, lora_rank: int, lora_train_bias: str = "none"
) -> nn.Module:
    if lora_rank > 0:
        _swap_linear_layers(module, lora_rank)
        _freeze_all_but_lora(module, lora_train_bias)
    return module


class LoRAModule(nn.Module):
    """Base of the model wrappers; subclasses call `convert_to_lora` once their layers exist."""

    def __init__(self, lora_rank: int = 0, lora_train_bias: str = "none") -> None:
        super().__init__()
        self.lora_rank = lora_rank
        self.lora_train_bias = lora_train_bias

    def convert_to_lora(self) -> None:
        convert_to_lora_module(self, self.lora_rank, self.lora_train_bias)
