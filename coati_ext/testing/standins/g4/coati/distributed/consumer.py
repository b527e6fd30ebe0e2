from __future__ import annotations

from typing import Any, Dict, Optional

import torch

from coati.distributed.utils import bind_batch, post_recv
from coati.trainer.utils import get_current_device


class BaseConsumer:
    def __init__(
        self,
        num_producers: int,
        num_episodes: int,
        rank: int,
        world_size: int,
        master_addr: str,
        master_port: int,
        num_update_per_episode: int,
        num_recv_per_update: int,
        batch_size: int,
        model_config: Dict[str, Any],
        plugin_config: Dict[str, Any],
        minibatch_size: int = 1,
        save_interval: int = 100,
        save_dir: str = "./model",
        enable_profiling: bool = False,
        n_behind: int = 0,
    ):
        assert batch_size % minibatch_size == 0, f"{batch_size} is no multiple of {minibatch_size}"
        self.num_producers = num_producers
        self.num_episodes = num_episodes
        self.rank = rank
        self.world_size = world_size
        self.master_addr = master_addr
        self.master_port = master_port
        self.num_update_per_episode = num_update_per_episode
        self.num_recv_per_update = num_recv_per_update
        self.batch_size = batch_size
        self.minibatch_size = minibatch_size
        self.num_microbatches = batch_size // minibatch_size
        self.save_interval = save_interval
        self.save_dir = save_dir
        self.enable_profiling = enable_profiling
        self.checkpoint_path = model_config.pop("checkpoint_path", None)
        self.model_config = model_config
        self.plugin_config = plugin_config
        self.device = get_current_device()
        self.lr_scheduler = None
        self.n_behind = n_behind
        self.total_prompt_trained = 0

    def state_dict(self) -> Dict[str, torch.Tensor]:
        raise NotImplementedError

    def step(self, step_idx: int, **kwargs) -> Optional[float]:
        raise NotImplementedError

    def prepare_mini_batch(self, effective_group_to_raw_group_mapping: Dict[int, int]) -> Any:
        """This rank's groups, and the numbers of all groups up to the last that is trained on."""
        mapping, size = effective_group_to_raw_group_mapping, self.minibatch_size
        mine = range(self.dp_rank * size, (self.dp_rank + 1) * size)
        seen = self.buffer[: mapping[self.dp_size * size - 1] + 1]
        names = ("reward", "format_acc", "ans_acc", "response_len")
        raw = {
            f"raw_train_mini_batch_{name}": [group[i] for group in seen]
            for i, name in enumerate(names, start=1)
        }
        return post_recv(bind_batch([self.buffer[mapping[i]][0] for i in mine])), raw
