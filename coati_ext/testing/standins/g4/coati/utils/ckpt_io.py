from __future__ import annotations

import json
import os
from typing import Any


def save_checkpoint(
    save_dir: str,
    booster: Any,
    model: Any,
    optimizer: Any,
    lr_scheduler: Any,
    epoch: int,
    step: int,
    batch_size: int,
    coordinator: Any,
) -> None:
    """Leave the weights and states to the booster, and write down where training stands."""
    folder = os.path.join(save_dir, f"epoch-{epoch}_step-{step}")
    os.makedirs(os.path.join(folder, "modeling"), exist_ok=True)
    booster.save_model(model, os.path.join(folder, "modeling"), shard=True)
    booster.save_optimizer(optimizer, os.path.join(folder, "optimizer"), shard=True)
    booster.save_lr_scheduler(lr_scheduler, os.path.join(folder, "lr_scheduler"))
    states = {"epoch": epoch, "step": step, "sample_start_index": step * batch_size}
    if coordinator.is_master():
        with open(os.path.join(folder, "running_states.json"), "w", encoding="utf-8") as stream:
            json.dump(states, stream, indent=4)
