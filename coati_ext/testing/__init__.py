"""A test kit for coati, its patches and plugins.

It has stand-ins for the four generations of coati, tiny models and tokenizers, synthetic preference
data, padding layouts, assertions about rewards, and helpers that run coati's trainers and
ColossalAI's plugins without a GPU.  Shapes: B batch rows, S sequence columns, H hidden.

    import sys
    from coati_ext.testing import standin
    sys.path.insert(0, str(standin("G2")))  # or put a real coati there

    from coati_ext.testing import assert_padding_invariant, tiny_reward_model
    assert_padding_invariant(tiny_reward_model("gpt2"))  # fails: that generation has the defect

Importing this package imports neither torch nor coati; each name is loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from coati_ext._lazy import lazy
from coati_ext.patching.patch import GENERATIONS
from coati_ext.testing.standin import standin

if TYPE_CHECKING:
    from coati_ext.testing.assertions import (
        assert_batch_invariant,
        assert_matches_sequence_classification,
        assert_padding_invariant,
    )
    from coati_ext.testing.cpu import LocalBooster, LocalCoordinator, LocalStrategy, cpu_only
    from coati_ext.testing.cpu_colossalai import cpu_plugins, gemini_optimizer
    from coati_ext.testing.distributed import (
        grpo_consumer,
        has_distributed,
        importable_rewards,
        learn,
        sampled,
    )
    from coati_ext.testing.models import families, tiny_config, tiny_reward_model
    from coati_ext.testing.padding import layouts, random_rows
    from coati_ext.testing.preferences import preference_pairs
    from coati_ext.testing.rollouts import (
        LocalModel,
        Models,
        experience_maker,
        make_experience,
        ppo_trainer,
        tiny_actor,
        tiny_critic,
        tiny_models,
        training_step,
    )
    from coati_ext.testing.text import tiny_tokenizer
    from coati_ext.testing.training import chosen_rows, pair_accuracy, train_reward_model

_HOMES = {
    "LocalBooster": "cpu",
    "LocalCoordinator": "cpu",
    "LocalModel": "rollouts",
    "LocalStrategy": "cpu",
    "Models": "rollouts",
    "assert_batch_invariant": "assertions",
    "assert_matches_sequence_classification": "assertions",
    "assert_padding_invariant": "assertions",
    "chosen_rows": "training",
    "cpu_only": "cpu",
    "cpu_plugins": "cpu_colossalai",
    "experience_maker": "rollouts",
    "families": "models",
    "gemini_optimizer": "cpu_colossalai",
    "grpo_consumer": "distributed",
    "has_distributed": "distributed",
    "importable_rewards": "distributed",
    "layouts": "padding",
    "learn": "distributed",
    "make_experience": "rollouts",
    "pair_accuracy": "training",
    "ppo_trainer": "rollouts",
    "preference_pairs": "preferences",
    "random_rows": "padding",
    "sampled": "distributed",
    "tiny_actor": "rollouts",
    "tiny_config": "models",
    "tiny_critic": "rollouts",
    "tiny_models": "rollouts",
    "tiny_reward_model": "models",
    "tiny_tokenizer": "text",
    "train_reward_model": "training",
    "training_step": "rollouts",
}

__all__ = [
    "GENERATIONS",
    "LocalBooster",
    "LocalCoordinator",
    "LocalModel",
    "LocalStrategy",
    "Models",
    "assert_batch_invariant",
    "assert_matches_sequence_classification",
    "assert_padding_invariant",
    "chosen_rows",
    "cpu_only",
    "cpu_plugins",
    "experience_maker",
    "families",
    "gemini_optimizer",
    "grpo_consumer",
    "has_distributed",
    "importable_rewards",
    "layouts",
    "learn",
    "make_experience",
    "pair_accuracy",
    "ppo_trainer",
    "preference_pairs",
    "random_rows",
    "sampled",
    "standin",
    "tiny_actor",
    "tiny_config",
    "tiny_critic",
    "tiny_models",
    "tiny_reward_model",
    "tiny_tokenizer",
    "train_reward_model",
    "training_step",
]

__getattr__, __dir__ = lazy(__name__, _HOMES)
