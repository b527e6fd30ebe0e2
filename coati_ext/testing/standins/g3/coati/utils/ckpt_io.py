from __future__ import annotations

import json
import os
from typing import Any, Tuple


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


def load_checkpoint(
    load_dir: str, booster: Any, model: Any, optimizer: Any, lr_scheduler: Any
) -> Tuple[int, int, int]:
    """Let the booster load what there is, and return the epoch, the step and the next sample."""
    for kind, what, name in (
        ("model", model, "modeling"),
        ("optimizer", optimizer, "optimizer"),
        ("lr_scheduler", lr_scheduler, "lr_scheduler"),
    ):
        if what is not None:
            getattr(booster, f"load_{kind}")(what, os.path.join(load_dir, name))
    with open(os.path.join(load_dir, "running_states.json"), encoding="utf-8") as stream:
        states = json.load(stream)
    return states["epoch"], states["step"], states["sample_start_index"]
