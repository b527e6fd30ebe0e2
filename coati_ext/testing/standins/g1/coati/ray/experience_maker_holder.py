from __future__ import annotations

import os
from threading import Lock
from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple, Union

import ray
import torch

from coati.experience_buffer.utils import split_experience_batch
from coati.experience_maker import Experience, NaiveExperienceMaker
from coati.trainer.strategies import Strategy

_BORROWED = {
    "prepare_inputs_fn": "prepare_inputs_for_generation",
    "update_model_kwargs_fn": "_update_model_kwargs_for_generation",
}


@ray.remote(concurrency_groups={"experience_io": 1, "model_io": 1, "compute": 1})
class ExperienceMakerHolder:
    """A Ray actor that makes experience and deals its rows to the trainers, in turn."""

    def __init__(
        self,
        detached_trainer_name_list: List[str],
        strategy_fn: Callable[[], Strategy],
        model_fn: Callable[[], Tuple[Any, Any, Any, Any]],
        env_info: Optional[Dict[str, str]] = None,
        sync_models_from_trainers: bool = False,
        buffer_cpu_offload: bool = True,
        kl_coef: float = 0.1,
        callbacks: List[Any] = [],  # noqa: B006
        eval_performance: bool = False,
        debug: bool = False,
        update_lora_weights: bool = False,
        **generate_kwargs: Any,
    ) -> None:
        self.names = list(detached_trainer_name_list)
        self.trainers: List[Any] = []
        self.turn = 0
        self.offload = buffer_cpu_offload
        self.lock = Lock()
        strategy = strategy_fn()
        with strategy.model_init_context():
            models = model_fn()
        inner = models[0].model
        borrowed = {key: getattr(inner, name) for key, name in _BORROWED.items()}
        self.generate_kwargs = {**borrowed, **generate_kwargs}
        self.experience_maker = NaiveExperienceMaker(*strategy.prepare(*models), kl_coef)

    @ray.method(concurrency_group="compute")
    def _make_experience(self, inputs: Union[torch.Tensor, Dict[str, torch.Tensor]]) -> Experience:
        if isinstance(inputs, dict):
            return self.experience_maker.make_experience(**inputs, **self.generate_kwargs)
        return self.experience_maker.make_experience(inputs, **self.generate_kwargs)

    @ray.method(concurrency_group="experience_io")
    def _send_items(self, experience: Experience) -> None:
        if not self.trainers:
            space = os.environ["RAY_NAMESPACE"]
            self.trainers = [ray.get_actor(name, namespace=space) for name in self.names]
        shares: List[List[Any]] = [[] for _ in self.trainers]
        for item in split_experience_batch(experience):
            shares[self.turn].append(item)
            self.turn = (self.turn + 1) % len(shares)
        for trainer, share in zip(self.trainers, shares):
            if share:
                trainer.buffer_extend.remote(share)

    def workingloop(
        self, dataloader_fn: Callable[[], Iterable[Any]], num_epochs: int = 1, num_steps: int = 0
    ) -> None:
        loader = dataloader_fn()
        done = 0
        while done < (num_steps or num_epochs * len(loader)):  # type: ignore[arg-type]
            for batch in loader:
                with self.lock:
                    experience = self._make_experience(batch)
                if self.offload:
                    experience.to_device("cpu")
                self._send_items(experience)
                done += 1
                if done == num_steps:
                    break

    @ray.method(concurrency_group="model_io")
    def update_experience_maker(
        self,
        new_actor_state_dict: Optional[Dict[str, Any]] = None,
        new_actor_lora_config_dict: Optional[Dict[str, Any]] = None,
        new_critic_state_dict: Optional[Dict[str, Any]] = None,
        new_critic_lora_config_dict: Optional[Dict[str, Any]] = None,
        fully_update: bool = False,
        chunk_start: Optional[bool] = None,
        chunk_end: Optional[bool] = None,
    ) -> None:
        if chunk_start:
            self.lock.acquire()
        if new_actor_state_dict is not None:
            self.experience_maker.actor.model.load_state_dict(new_actor_state_dict, strict=False)
        if new_critic_state_dict is not None:
            self.experience_maker.critic.load_state_dict(new_critic_state_dict, strict=False)
        if chunk_end:
            self.lock.release()
