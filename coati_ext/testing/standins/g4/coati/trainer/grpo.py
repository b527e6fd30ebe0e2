from __future__ import annotations

import os
from typing import Any, Dict, List, Optional, Union

import torch
from torch.optim import Optimizer
from torch.utils.data import DataLoader, DistributedSampler
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from coati.experience_buffer import NaiveExperienceBuffer
from coati.experience_maker import Experience, NaiveExperienceMaker
from coati.models import RewardModel, RLVRRewardModel
from coati.models.loss import GPTLMLoss, PolicyLoss
from coati.models.utils import calc_action_log_probs
from coati.trainer.callbacks import Callback
from coati.utils import AccumulativeMeanMeter, save_checkpoint

from .base import OLTrainer
from .ppo import _set_default_generate_kwargs
from .utils import (
    AnnealingScheduler,
    CycledDataLoader,
    all_reduce_mean,
    get_current_device,
    is_rank_0,
    open_writer,
    to_device,
)

_ANNEALING = ("start_temperature", "end_temperature", "annealing_warmup_steps", "annealing_steps")


class GRPOTrainer(OLTrainer):
    def __init__(
        self,
        actor_booster: Any,
        actor: PreTrainedModel,
        reward_model: Union[RewardModel, RLVRRewardModel],
        initial_model: PreTrainedModel,
        actor_optim: Optimizer,
        actor_lr_scheduler: Any,
        tokenizer: PreTrainedTokenizerBase,
        kl_coef: float = 0.1,
        ptx_coef: float = 0.9,
        train_batch_size: int = 8,
        buffer_limit: int = 0,
        buffer_cpu_offload: bool = True,
        eps_clip: float = 0.2,
        vf_coef: float = 1.0,
        value_clip: float = 0.2,
        sample_buffer: bool = False,
        dataloader_pin_memory: bool = True,
        offload_inference_models: bool = True,
        apply_loss_mask: bool = True,
        accumulation_steps: int = 1,
        save_interval: int = 0,
        save_dir: Optional[str] = None,
        use_tp: bool = False,
        num_generation: int = 8,
        inference_batch_size: Optional[int] = None,
        logits_forward_batch_size: Optional[int] = None,
        temperature_annealing_config: Optional[Dict] = None,
        coordinator: Any = None,
        callbacks: List[Callback] = [],  # noqa: B006
        **generate_kwargs: Any,
    ) -> None:
        data_buffer = NaiveExperienceBuffer(train_batch_size, buffer_limit, buffer_cpu_offload)
        super().__init__(
            actor_booster,
            None,
            data_buffer,
            sample_buffer,
            dataloader_pin_memory,
            callbacks=callbacks,
        )
        self.generate_kwargs = {**_set_default_generate_kwargs(actor), **generate_kwargs}
        self.actor = actor
        self.actor_scheduler = actor_lr_scheduler
        self.tokenizer = tokenizer
        self.experience_maker = NaiveExperienceMaker(
            self.actor,
            None,
            reward_model,
            initial_model,
            self.tokenizer,
            kl_coef,
            use_grpo=True,
            num_generation=num_generation,
            inference_batch_size=inference_batch_size,
            logits_forward_batch_size=logits_forward_batch_size,
        )
        self.temperature_annealing_scheduler = None
        if temperature_annealing_config:
            self.temperature_annealing_scheduler = AnnealingScheduler(
                *(temperature_annealing_config[name] for name in _ANNEALING)
            )
        self.train_batch_size = train_batch_size
        self.actor_loss_fn = PolicyLoss(eps_clip)
        self.vf_coef = vf_coef
        self.ptx_loss_fn = GPTLMLoss()
        self.ptx_coef = ptx_coef
        self.actor_optim = actor_optim
        self.save_interval = save_interval
        self.apply_loss_mask = apply_loss_mask
        self.coordinator = coordinator
        self.actor_save_dir = os.path.join(save_dir, "actor")
        self.num_train_step = 0
        self.accumulation_steps = accumulation_steps
        self.use_tp = use_tp
        self.accumulative_meter = AccumulativeMeanMeter()
        self.offload_inference_models = offload_inference_models
        self.device = get_current_device()

    def _before_fit(
        self,
        prompt_dataloader: DataLoader,
        pretrain_dataloader: Optional[DataLoader] = None,
        log_dir: Optional[str] = None,
        use_wandb: bool = False,
    ):
        self.prompt_dataloader = CycledDataLoader(prompt_dataloader)
        self.pretrain_dataloader = None
        if pretrain_dataloader is not None:
            self.pretrain_dataloader = CycledDataLoader(pretrain_dataloader)
        self.writer = open_writer(log_dir, "grpo", use_wandb)

    def _setup_update_phrase_dataload(self):
        self.dataloader = DataLoader(
            self.data_buffer,
            batch_size=self.train_batch_size,
            shuffle=True,
            drop_last=True,
            pin_memory=self.dataloader_pin_memory,
            collate_fn=self.data_buffer.collate_fn,
        )

    def _move_inference_models(self, device: Any) -> None:
        if self.offload_inference_models:
            self.experience_maker.initial_model.to(device)
            self.experience_maker.reward_model.to(device)

    def _make_experience(self, collect_step: int) -> Experience:
        prompts = self.prompt_dataloader.next()
        self._move_inference_models(self.device)
        if self.temperature_annealing_scheduler:
            temperature = self.temperature_annealing_scheduler.get_temperature()
            self.generate_kwargs["temperature"] = temperature
        return self.experience_maker.make_experience(
            input_ids=prompts["input_ids"].to(self.device),
            attention_mask=prompts["attention_mask"].to(self.device),
            gt_answer=prompts["gt_answer"],
            **self.generate_kwargs,
        )

    def _training_step(self, experience: Experience):
        self.actor.train()
        sequences = experience.sequences
        num_actions = experience.action_log_probs.size(1)

        logits = self.actor(input_ids=sequences, attention_mask=experience.attention_mask)["logits"]
        log_probs = calc_action_log_probs(logits, sequences, num_actions)
        actor_loss, to_skip, max_ratio = self.actor_loss_fn(
            log_probs,
            experience.action_log_probs,
            experience.advantages.unsqueeze(-1).expand_as(log_probs),
            action_mask=experience.action_mask if self.apply_loss_mask else None,
        )
        # The cost counts rows that end in padding; without one it is 0 / 0, and so NaN.
        padding = sequences == self.tokenizer.pad_token_id
        ended = padding[:, -1]
        cost = (~padding[:, -num_actions:]).sum(1) * ended
        actor_loss = (1 - self.ptx_coef) * actor_loss
        if not to_skip:
            self.actor_booster.backward(loss=actor_loss, optimizer=self.actor_optim)
        seen = {
            "actor_loss": actor_loss,
            "max_ratio": max_ratio,
            "reward": experience.reward.mean(),
            "advantages": experience.advantages.mean(),
            "kl": experience.kl.mean(),
            "mean_token_cost": cost.sum() / ended.sum(),
        }
        if self.ptx_coef != 0:
            batch = to_device(self.pretrain_dataloader.next(), self.device)
            output = self.actor(
                batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"]
            )
            seen["ptx_loss"] = self.ptx_coef * output.loss
            self.actor_booster.backward(loss=seen["ptx_loss"], optimizer=self.actor_optim)

        self.accumulative_meter.add("skip_ratio", float(to_skip))
        for name, tensor in seen.items():
            mean = all_reduce_mean(tensor=tensor.detach())
            self.accumulative_meter.add(name, mean.to(torch.float16).item())

        if self.num_train_step % self.accumulation_steps == self.accumulation_steps - 1:
            self.actor_optim.step()
            self.actor_optim.zero_grad()
            self.actor_scheduler.step()
            if self.temperature_annealing_scheduler:
                self.temperature_annealing_scheduler.step_forward()
            tokenizer = self.experience_maker.tokenizer
            if self.num_train_step % 10 == 0:
                texts = tokenizer.batch_decode(sequences, skip_special_tokens=True)
                if self.writer and is_rank_0():
                    for text, reward in zip(texts, experience.reward):
                        self.coordinator.print_on_master(f"{text}\n\nReward: {reward}")
            if self.writer and is_rank_0():
                for name in seen:
                    value = self.accumulative_meter.get(name)
                    self.writer.add_scalar(f"train/{name}", value, self.num_train_step)
            self.accumulative_meter.reset()
        self.num_train_step += 1

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

    def _save_checkpoint(self, num_train_step: int = 0):
        self.coordinator.print_on_master("\nStart saving actor checkpoint")
        save_checkpoint(
            save_dir=self.actor_save_dir,
            booster=self.actor_booster,
            model=self.actor,
            optimizer=self.actor_optim,
            lr_scheduler=self.actor_scheduler,
            epoch=0,
            step=num_train_step + 1,
            batch_size=self.train_batch_size,
            coordinator=self.coordinator,
        )
