from __future__ import annotations

from typing import Any, Dict, Optional

import torch

from coati.trainer.utils import get_current_device


class BaseConsumer:
    def __init__(
        self,
        shared_sync_data_actor: Any,
        shared_signal_actor: Any,
        num_producers: int,
        num_episodes: int,
        rank: int,
        world_size: int,
        master_addr: str,
        master_port: int,
        train_dataset_size: int,
        batch_size: int,
        model_config: Dict[str, Any],
        plugin_config: Dict[str, Any],
        minibatch_size: int = 1,
        save_interval: int = 100,
        save_dir: str = "./model",
        enable_profiling: bool = False,
    ):
        self.shared_sync_data_actor = shared_sync_data_actor
        self.shared_signal_actor = shared_signal_actor
        self.num_producers = num_producers
        self.num_episodes = num_episodes
        self.rank = rank
        self.world_size = world_size
        self.master_addr = master_addr
        self.master_port = master_port
        self.train_dataset_size = train_dataset_size
        self.received_prompts = 0
        self.batch_size = batch_size
        self.minibatch_size = minibatch_size
        self.num_microbatches = batch_size // minibatch_size
        self.save_interval = save_interval
        self.save_dir = save_dir
        self.enable_profiling = enable_profiling
        self.model_config = model_config
        self.plugin_config = plugin_config
        self.device = get_current_device()
        self.lr_scheduler = None

    def state_dict(self) -> Dict[str, torch.Tensor]:
        raise NotImplementedError

    def step(self, **kwargs) -> Optional[float]:
        raise NotImplementedError
