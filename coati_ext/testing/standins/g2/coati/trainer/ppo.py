from __future__ import annotations

from typing import Any, Dict, List, Optional

import torch
from torch.optim import Optimizer
from torch.utils.data import DataLoader, DistributedSampler
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from coati.experience_buffer import NaiveExperienceBuffer
from coati.experience_maker import Experience, NaiveExperienceMaker
from coati.models.base import Actor, Critic, RewardModel, get_base_model
from coati.models.loss import GPTLMLoss, PolicyLoss, ValueLoss
from coati.models.utils import calc_action_log_probs

from .base import OnPolicyTrainer
from .callbacks import Callback
from .strategies import GeminiStrategy, Strategy
from .utils import CycledDataLoader, is_rank_0, open_writer, to_device

_BORROWED = {
    "prepare_inputs_fn": "prepare_inputs_for_generation",
    "update_model_kwargs_fn": "_update_model_kwargs_for_generation",
}


def _set_default_generate_kwargs(
    strategy: Strategy, generate_kwargs: dict, actor: Actor
) -> Dict[str, Any]:
    """Let the transformers model prepare its own inputs unless the caller said otherwise."""
    model = get_base_model(strategy.unwrap_model(actor))
    borrowed = {
        key: getattr(model, name) for key, name in _BORROWED.items() if hasattr(model, name)
    }
    return {**borrowed, **generate_kwargs}


class PPOTrainer(OnPolicyTrainer):
    def __init__(
        self,
        strategy: Strategy,
        actor: Actor,
        critic: Critic,
        reward_model: RewardModel,
        initial_model: Actor,
        actor_optim: Optimizer,
        critic_optim: Optimizer,
        tokenizer: PreTrainedTokenizerBase,
        kl_coef: float = 0.1,
        ptx_coef: float = 0.9,
        train_batch_size: int = 8,
        buffer_limit: int = 0,
        buffer_cpu_offload: bool = True,
        eps_clip: float = 0.2,
        vf_coef: float = 1.0,
        value_clip: float = 0.4,
        sample_buffer: bool = False,
        dataloader_pin_memory: bool = True,
        offload_inference_models: bool = True,
        callbacks: List[Callback] = [],  # noqa: B006
        **generate_kwargs: Any,
    ) -> None:
        assert not (isinstance(strategy, GeminiStrategy) and offload_inference_models)
        data_buffer = NaiveExperienceBuffer(train_batch_size, buffer_limit, buffer_cpu_offload)
        super().__init__(strategy, data_buffer, sample_buffer, dataloader_pin_memory, callbacks)
        self.generate_kwargs = _set_default_generate_kwargs(strategy, generate_kwargs, actor)
        self.experience_maker = NaiveExperienceMaker(
            actor, critic, reward_model, initial_model, tokenizer, kl_coef
        )
        self.offload_inference_models = offload_inference_models
        self.actor = actor
        self.critic = critic
        self.tokenizer = tokenizer
        self.actor_loss_fn = PolicyLoss(eps_clip)
        self.critic_loss_fn = ValueLoss(value_clip)
        self.vf_coef = vf_coef
        self.ptx_loss_fn = GPTLMLoss()
        self.ptx_coef = ptx_coef
        self.actor_optim = actor_optim
        self.critic_optim = critic_optim
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def _before_fit(
        self,
        prompt_dataloader: DataLoader,
        pretrain_dataloader: DataLoader,
        log_dir: Optional[str] = None,
        use_wandb: bool = False,
    ):
        self.prompt_dataloader = CycledDataLoader(prompt_dataloader)
        self.pretrain_dataloader = CycledDataLoader(pretrain_dataloader)
        self.writer = open_writer(log_dir, "ppo", use_wandb)

    def _move_inference_models(self, device: Any) -> None:
        if self.offload_inference_models:
            self.experience_maker.initial_model.to(device)
            self.experience_maker.reward_model.to(device)

    def _make_experience(self, collect_step: int) -> Experience:
        prompts = self.prompt_dataloader.next()
        self._move_inference_models(self.device)
        assert isinstance(prompts, dict), f"prompts of type {type(prompts)} are not supported"
        return self.experience_maker.make_experience(**prompts, **self.generate_kwargs)

    def _training_step(self, experience: Experience):
        self.actor.train()
        self.critic.train()
        sequences, mask = experience.sequences, experience.attention_mask

        num_actions = experience.action_log_probs.size(1)
        logits = self.actor(sequences, mask)["logits"]
        actor_loss = self.actor_loss_fn(
            calc_action_log_probs(logits, sequences, num_actions),
            experience.action_log_probs,
            experience.advantages,
            action_mask=experience.action_mask,
        )
        self.strategy.backward((1 - self.ptx_coef) * actor_loss, self.actor, self.actor_optim)
        if self.ptx_coef != 0:
            batch = to_device(self.pretrain_dataloader.next(), self.device)
            logits = self.actor(batch["input_ids"], batch["attention_mask"])["logits"]
            ptx_loss = self.ptx_coef * self.ptx_loss_fn(logits, batch["labels"])
            self.strategy.backward(ptx_loss, self.actor, self.actor_optim)
        self.strategy.optimizer_step(self.actor_optim)
        self.actor_optim.zero_grad()

        values = self.critic(sequences, attention_mask=mask)
        critic_loss = self.critic_loss_fn(values, experience.values, experience.reward)
        self.strategy.backward(critic_loss * self.vf_coef, self.critic, self.critic_optim)
        self.strategy.optimizer_step(self.critic_optim)
        self.critic_optim.zero_grad()

    def _learn(self, update_step: int) -> None:
        self._move_inference_models("cpu")
        if self.sample_buffer:
            batches = [self.data_buffer.sample()]
        else:
            if isinstance(self.dataloader.sampler, DistributedSampler):
                self.dataloader.sampler.set_epoch(update_step)
            title = f"Train epoch [{update_step + 1}]"
            batches = tqdm(self.dataloader, desc=title, disable=not is_rank_0())
        for experience in batches:
            self._on_learn_batch_start()
            experience.to_device(self.device)
            self._training_step(experience)
            self._on_learn_batch_end(experience)
