from __future__ import annotations

from typing import Union

import torch.nn as nn

from .actor import Actor
from .critic import Critic
from .reward_model import RewardModel


def get_base_model(model: Union[Actor, Critic, RewardModel]) -> nn.Module:
    """The transformers model inside one of the three wrappers."""
    assert isinstance(model, (Actor, Critic, RewardModel)), f"cannot unwrap a {type(model)}"
    return model.model


__all__ = ["Actor", "Critic", "RewardModel", "get_base_model"]
