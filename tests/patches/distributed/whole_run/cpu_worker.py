"""Ray's set-up hook for workers without CUDA: their broadcasts go through the script's ``Mail``."""

from __future__ import annotations

from contextlib import ExitStack

import ray
import torch

_undo = ExitStack()  # never closed: a worker stays as it is


def set_up() -> None:
    from ray.util import collective

    from coati_ext.testing import cpu_plugins, importable_rewards
    from coati_ext.testing.cpu import no_cuda

    torch.set_num_threads(1)
    for context in (no_cuda(), cpu_plugins(), importable_rewards()):
        _undo.enter_context(context)
    torch.cuda.reset_peak_memory_stats = lambda: None
    torch.cuda.max_memory_allocated = lambda: 0
    from colossalai.nn.optimizer import hybrid_adam

    hybrid_adam.HybridAdam = torch.optim.AdamW  # which needs no CUDA
    groups = {}

    def join(world_size, rank, backend=None, group_name="default"):
        groups[group_name] = {"ranks": world_size, "rank": rank, "sent": 0}

    def broadcast(tensor, src, group_name):
        group = groups[group_name]
        key, group["sent"] = (group_name, group["sent"]), group["sent"] + 1
        mail = ray.get_actor("mail")
        if group["rank"] == src:
            ray.get(mail.send.remote(key, tensor.detach().clone(), group["ranks"] - 1))
        else:
            tensor.copy_(ray.get(mail.receive.remote(key)))

    collective.init_collective_group = join
    collective.broadcast = broadcast
    collective.get_rank = lambda group_name: groups[group_name]["rank"]
