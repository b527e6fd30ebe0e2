from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Optional

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from coati.distributed.actors import remote
from coati.distributed.consumer import BaseConsumer
from coati.distributed.loss import PolicyLoss
from coati.distributed.steps import accumulate, log_update


@remote
class GRPOConsumer(BaseConsumer):
    def __init__(
        self,
        num_producers,
        num_episodes,
        rank,
        world_size,
        master_addr,
        master_port,
        num_update_per_episode,
        num_recv_per_update,
        batch_size,
        model_config,
        plugin_config,
        minibatch_size=1,
        num_generations=8,
        generate_config=None,
        grpo_config={},  # noqa: B006
        save_interval: int = 100,
        save_dir="./model",
        project_name: Optional[str] = None,
        run_name: Optional[str] = None,
        wandb_group_name: Optional[str] = None,
        enable_profiling: bool = False,
        n_behind: int = 0,
    ):
        super().__init__(
            *(num_producers, num_episodes, rank, world_size, master_addr, master_port),
            *(num_update_per_episode, num_recv_per_update, batch_size),
            *(model_config, plugin_config, minibatch_size),
            save_interval=save_interval,
            save_dir=save_dir,
            enable_profiling=enable_profiling,
            n_behind=n_behind,
        )
        path = model_config.pop("path")
        self.policy_model = AutoModelForCausalLM.from_pretrained(path, **model_config)
        self.policy_model.train()
        self.optimizer = torch.optim.AdamW(
            self.policy_model.parameters(), lr=grpo_config.get("lr", 1e-6)
        )
        names = ("accum_loss", "accum_kl", "accum_entropy", "accum_advantages")
        vars(self).update({name: torch.zeros(1, device=self.device) for name in names})
        self.raw_train_batch_reward, self.raw_train_batch_format_acc = [], []
        self.raw_train_batch_ans_acc, self.raw_train_batch_response_len = [], []
        self.accum_count = self.effective_sample_count = self.effective_prompt_count = 0
        self.generate_config = generate_config
        self.grpo_config = grpo_config
        self.policy_loss_fn = PolicyLoss(
            grpo_config.get("clip_eps_low", 0.2),
            grpo_config.get("clip_eps_high", 0.2),
            grpo_config.get("beta", 0.01),
            grpo_config.get("loss_variation", "sample_level"),
            grpo_config.get("algo"),
        )
        if self.policy_loss_fn.beta > 0:
            self.reference_model = AutoModelForCausalLM.from_pretrained(path, **model_config).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.pad_token_id = self.tokenizer.pad_token_id
        self.num_generations = num_generations
        self.filter_range = grpo_config.get("filter_range", None)
        self.filter_truncated_response = grpo_config.get("filter_truncated_response", False)
        if self.filter_truncated_response:
            self.max_length = self.generate_config["max_tokens"]
        self.global_step = 0
        self.adv = grpo_config.get("algo")

    def step(self, step_idx: int, pbar: Any, **kwargs) -> Optional[float]:
        """Train on a minibatch of groups; at the end of an update its loss, else None."""
        policy_model, optimizer = self.policy_model, self.optimizer
        loss_fn = self.policy_loss_fn
        advantages = advantages_of(self, kwargs["reward"].view(-1))
        self.effective_prompt_count += kwargs["reward"].size(0) * self.dp_size
        if self.grpo_config.get("dynamic_batching", True):
            need_update = self.effective_prompt_count >= self.batch_size * self.dp_size
        else:
            need_update = (step_idx + 1) % self.num_microbatches == 0
        free = need_update or self.booster.plugin.zero_stage == 2
        with nullcontext() if free else self.booster.no_sync(policy_model, optimizer):
            accumulate(self, loss_fn, advantages, pbar, kwargs)
        if not need_update:
            return None
        optimizer.step()
        optimizer.zero_grad()
        self.global_step += 1
        return log_update(self, kwargs)


def advantages_of(consumer: Any, reward: torch.Tensor) -> torch.Tensor:
    """One advantage per answer, (B, 1)."""
    groups = reward.view(-1, consumer.num_generations)
    centred = groups - groups.mean(dim=1, keepdim=True)
    if consumer.adv in ("GRPO", "DAPO"):
        centred = centred / (groups.std(dim=1, keepdim=True) + 1e-4)
    elif consumer.adv == "RLOO":
        centred = centred * (consumer.num_generations / (consumer.num_generations - 1))
    return centred.view(-1, 1)
