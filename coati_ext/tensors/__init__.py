"""Pure tensor functions for PPO and GRPO.

They load on first use, so that a patch can be declared without importing torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from coati_ext._lazy import lazy

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
        is_compiling,
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
        widened,
    )
    from coati_ext.tensors.metrics import Joint, calibration_error, calibration_sums, joint_sums
    from coati_ext.tensors.rewards import every_token_reward, terminal_reward
    from coati_ext.tensors.scaling import (
        centring_loss,
        combined_moments,
        mean_and_spread,
        reward_moments,
        scaled,
    )
    from coati_ext.tensors.token_log_probs import head_log_probs

_HOMES = {
    "Joint": "metrics",
    "answer_mask": "answers",
    "calibration_error": "metrics",
    "calibration_sums": "metrics",
    "centring_loss": "scaling",
    "combined_moments": "scaling",
    "every_token_reward": "rewards",
    "gae": "advantages",
    "group_advantage": "advantages",
    "head_log_probs": "token_log_probs",
    "is_compiling": "frame",
    "joint_sums": "metrics",
    "kl_estimate": "answers",
    "left_frame": "frame",
    "mean_and_spread": "scaling",
    "moments": "advantages",
    "pairwise_loss": "losses",
    "policy_loss": "losses",
    "policy_ratio": "losses",
    "position_ids": "frame",
    "real_actions": "losses",
    "reward_moments": "scaling",
    "scaled": "scaling",
    "selected_log_probs": "answers",
    "sequence_advantage": "advantages",
    "terminal_reward": "rewards",
    "token_mask": "frame",
    "trimmed": "frame",
    "value_loss": "losses",
    "whitened": "advantages",
    "widened": "losses",
    "without_outer_pads": "frame",
}

__all__ = [
    "Joint",
    "answer_mask",
    "calibration_error",
    "calibration_sums",
    "centring_loss",
    "combined_moments",
    "every_token_reward",
    "gae",
    "group_advantage",
    "head_log_probs",
    "is_compiling",
    "joint_sums",
    "kl_estimate",
    "left_frame",
    "mean_and_spread",
    "moments",
    "pairwise_loss",
    "policy_loss",
    "policy_ratio",
    "position_ids",
    "real_actions",
    "reward_moments",
    "scaled",
    "selected_log_probs",
    "sequence_advantage",
    "terminal_reward",
    "token_mask",
    "trimmed",
    "value_loss",
    "whitened",
    "widened",
    "without_outer_pads",
]

__getattr__, __dir__ = lazy(__name__, _HOMES)
