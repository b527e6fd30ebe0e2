"""``GRPOConsumer.step`` of both packages, and what it logs. Letters: B rows, A action columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, List, Optional

from .update import Rows, learn

if TYPE_CHECKING:
    from torch import Tensor

_RAW = "raw_train_mini_batch_"
"""Of all that was sampled for a minibatch, the groups that are filtered out included."""
_LOGGED = ("reward", "format_acc", "ans_acc", "response_len")


def step(self: Any, step_idx: int, pbar: Any, **kwargs: Any) -> Optional[float]:
    """Learn from a minibatch; the loss of the update, if this was the last of one."""
    rows = rows_of(self, kwargs)
    last = _take(self, pbar, rows, kwargs)
    if not self.grpo_config.get("dynamic_batching", True):
        last = (step_idx + 1) % self.num_microbatches == 0
    learn(self, rows, last)
    return _update(self, kwargs) if last else None


def step_of_zero_bubble(self: Any, pbar: Any, **kwargs: Any) -> Optional[float]:
    """The same where data comes from a queue, whose length follows what is filtered out."""
    import ray

    rows = rows_of(self, kwargs)
    last = _take(self, pbar, rows, kwargs)
    learn(self, rows, last)
    if not last:
        return None
    used = _utilization(self)
    loss = _update(self, kwargs, scheduler=self.lr_scheduler)
    if hasattr(self, "wandb_run"):
        ray.get(self.shared_signal_actor.set_signal.remote("sample_utilization", used))
    return loss


def rows_of(self: Any, given: Dict[str, Any]) -> Rows:
    """A minibatch as tensors of B rows each, the answers to one prompt side by side.

    Raises:
        KeyError: the producer has not sent something.
    """
    names = ("input_ids", "attention_mask", "action_mask", "action_log_probs")
    ids, attended, actions, old = (given[name].flatten(0, 1) for name in names)
    mask = actions != 0
    kept = mask.new_ones(mask.size(0))
    if self.filter_truncated_response and mask.size(1) == self.max_length:
        kept &= ~mask[:, -1]
    if self.filter_range is not None and not self.grpo_config.get("dynamic_batching", False):
        accuracy = given["ans_acc"].flatten(0, 1).view(-1, self.num_generations).mean(dim=1)
        low, high = self.filter_range
        within = (accuracy > low) & (accuracy < high)
        kept &= within.repeat_interleave(self.num_generations)
    return {
        "input_ids": ids,
        "attention_mask": attended,
        "action_mask": mask,
        "loss_mask": kept,
        "old_log_probs": old,
        "reward": given["reward"].reshape(-1),
        "temperature": given["temperature"].reshape(-1).repeat_interleave(self.num_generations),
    }


def _take(self: Any, pbar: Any, rows: Rows, given: Dict[str, Any]) -> bool:
    """Count a minibatch; whether it is the last of its update."""
    from coati.trainer.utils import all_reduce_sum

    # A tensor until it is read with the rest.
    self.effective_sample_count += all_reduce_sum(rows["loss_mask"].sum(), self.plugin)
    for name in _LOGGED:
        getattr(self, f"raw_train_batch_{name}").extend(given[f"{_RAW}{name}"])
    self.effective_prompt_count += given["input_ids"].size(0) * self.dp_size
    wanted = self.batch_size * self.dp_size
    told = f"{self.effective_prompt_count}/{wanted} effective prompts"
    pbar.set_postfix({"Global Step": self.global_step, "Gradient Accumulation on": told})
    done: bool = self.effective_prompt_count >= wanted
    return done


def _utilization(self: Any) -> float:
    """The share of what was sampled that is trained on."""
    groups = len(self.raw_train_batch_reward)
    return float(self.effective_sample_count / groups / self.num_generations)


def _update(self: Any, given: Dict[str, Any], scheduler: Any = None) -> float:
    """Step the optimizer, log, and begin anew; the loss of the update."""
    self.optimizer.step()
    self.optimizer.zero_grad()
    self.global_step += 1
    if scheduler is not None:
        scheduler.step()
    loss = _log(self, given)
    self.effective_prompt_count = self.effective_sample_count = 0
    for name in _LOGGED:
        getattr(self, f"raw_train_batch_{name}").clear()
    return loss


def _log(self: Any, given: Dict[str, Any]) -> float:
    """Print and record what the update was like; its loss."""
    import torch
    from coati.trainer.utils import all_reduce_mean

    sums = {
        "train/loss": self.accum_loss,
        "train/entropy": self.accum_entropy,
        "train/advantages": self.accum_advantages,
    }
    if self.policy_loss_fn.beta > 0:
        sums["train/kl"] = self.accum_kl
    # On all ranks of a stage, one that logs nothing too: it is a collective.
    numbers = all_reduce_mean(torch.cat(list(sums.values())), self.plugin).tolist()
    for item in sums.values():
        item.zero_()
    if hasattr(self, "wandb_run"):
        columns = given["action_mask"].size(-1)
        metrics = {**dict(zip(sums, numbers)), **_raw_metrics(self, columns)}
        metrics["train/learning_rate"] = self.lr_scheduler.get_last_lr()[0]
        metrics["train/sample_utilization"] = _utilization(self)
        metrics["rollout/temperature"] = float(given["temperature"].double().mean())
        print("\n".join(f"{name}: {value:.4f}" for name, value in metrics.items()))
        if self.wandb_run is not None:
            self.wandb_run.log(metrics)
    return float(numbers[0])


def _raw_metrics(self: Any, columns: int) -> Dict[str, float]:
    """Means over all that was sampled for the update, in groups of one length each."""
    import torch

    def joined(name: str) -> Tensor:
        parts: List[Tensor] = getattr(self, f"raw_train_batch_{name}")
        return torch.cat(parts)

    lengths = joined("response_len")
    return {
        "metrics/reward": float(joined("reward").mean()),
        "metrics/format_acc": float(joined("format_acc").mean()),
        "metrics/ans_acc": float(joined("ans_acc").mean()),
        "metrics/response_length": float(lengths.mean()),
        "train/overlength_samples_ratio": float((lengths >= columns).double().mean()),
    }
