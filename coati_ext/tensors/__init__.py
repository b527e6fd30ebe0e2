"""Pure functions of tensors. Loaded on first use, so that a patch can be declared without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coati_ext.tensors.advantages import (
        gae,
        group_advantage,
        moments,
        sequence_advantage,
        whitened,
    )
    from coati_ext.tensors.answers import answer_mask, kl_estimate, selected_log_probs
    from coati_ext.tensors.frame import (
        left_frame,
        position_ids,
        token_mask,
        trimmed,
        without_outer_pads,
    )
    from coati_ext.tensors.losses import (
        pairwise_loss,
        policy_loss,
        policy_ratio,
        real_actions,
        value_loss,
    )
    from coati_ext.tensors.rewards import every_token_reward, terminal_reward

_HOMES = {
    "answer_mask": "coati_ext.tensors.answers",
    "every_token_reward": "coati_ext.tensors.rewards",
    "gae": "coati_ext.tensors.advantages",
    "group_advantage": "coati_ext.tensors.advantages",
    "kl_estimate": "coati_ext.tensors.answers",
    "left_frame": "coati_ext.tensors.frame",
    "moments": "coati_ext.tensors.advantages",
    "pairwise_loss": "coati_ext.tensors.losses",
    "policy_loss": "coati_ext.tensors.losses",
    "policy_ratio": "coati_ext.tensors.losses",
    "position_ids": "coati_ext.tensors.frame",
    "real_actions": "coati_ext.tensors.losses",
    "selected_log_probs": "coati_ext.tensors.answers",
    "sequence_advantage": "coati_ext.tensors.advantages",
    "terminal_reward": "coati_ext.tensors.rewards",
    "token_mask": "coati_ext.tensors.frame",
    "trimmed": "coati_ext.tensors.frame",
    "value_loss": "coati_ext.tensors.losses",
    "whitened": "coati_ext.tensors.advantages",
    "without_outer_pads": "coati_ext.tensors.frame",
}

__all__ = [
    "answer_mask",
    "every_token_reward",
    "gae",
    "group_advantage",
    "kl_estimate",
    "left_frame",
    "moments",
    "pairwise_loss",
    "policy_loss",
    "policy_ratio",
    "position_ids",
    "real_actions",
    "selected_log_probs",
    "sequence_advantage",
    "terminal_reward",
    "token_mask",
    "trimmed",
    "value_loss",
    "whitened",
    "without_outer_pads",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        from importlib import import_module

        function = getattr(import_module(_HOMES[name]), name)
        globals()[name] = function
        return function
    raise AttributeError(f"module 'coati_ext.tensors' has no attribute {name!r}")
