from __future__ import annotations

from typing import Any, Dict, Optional

from transformers import AutoTokenizer

from coati.distributed.reward.reward_fn import code_reward_fn
from coati.distributed.reward.verifiable_reward import VerifiableReward

_TO_REWARDS = ("soft_over_length_punishment", "max_new_tokens", "cache_length")


class BaseProducer:
    """No loader and no backend: what the rewards are given."""

    def __init__(
        self,
        producer_idx: int,
        num_producers: int,
        num_consumer_procs: int,
        num_episodes: int,
        batch_size: int,
        train_dataset_config: Dict[str, Any],
        model_config: Dict[str, Any],
        generate_config: Dict[str, Any],
        tokenizer_config: Optional[Dict[str, Any]] = None,
        microbatch_size: int = 1,
        backend: str = "transformers",
        consumer_plugin_config: Optional[Dict[str, Any]] = None,
        eval_dataset_config=None,
        eval_interval=-1,
        grpo_config: Optional[Dict[str, Any]] = None,
        eval_save_dir: str = "./eval",
        project_name: Optional[str] = None,
        run_name: Optional[str] = None,
        wandb_group_name: Optional[str] = None,
        log_rollout_interval: int = 20,
        rollout_log_file: str = "./rollout_log.jsonl",
        enable_profiling: bool = False,
        n_behind: int = 0,
    ):
        self.producer_idx = producer_idx
        self.grpo_config = grpo_config
        self.generate_config = generate_config
        self.tokenizer = AutoTokenizer.from_pretrained(model_config["path"], padding_side="left")
        given = (*_TO_REWARDS, "code_verifier_api_url")
        if grpo_config["reward_fn_type"] != "code":
            raise ValueError(f"Unknown evaluation function type {grpo_config['reward_fn_type']}")
        self.evaluation_function = code_reward_fn
        self.reward_model = VerifiableReward(
            reward_fns=[self.evaluation_function],
            tokenizer=self.tokenizer,
            tags=grpo_config.get("response_format_tags", None),
            **{name: value for name, value in grpo_config.items() if name in given},
        )
