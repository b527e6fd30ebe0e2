"""What both packages' steps have in common; upstream wrote it out in each, twice."""

from __future__ import annotations

from typing import Any, Dict

import torch

from coati.distributed.utils import entropy_from_logits, memory_efficient_logprob
from coati.trainer.utils import all_reduce_mean, all_reduce_sum


def accumulate(consumer: Any, loss_fn: Any, advantages: Any, pbar: Any, given: Any) -> None:
    """Gradients of a minibatch, microbatch by microbatch, each with a loss of full size (D45)."""
    data = {
        name: item.reshape(-1, item.size(-1))
        for name, item in given.items()
        if "raw_train_mini_batch_" not in name
    }
    for name in ("reward", "format_acc", "ans_acc", "response_len"):
        raw = given[f"raw_train_mini_batch_{name}"]
        getattr(consumer, f"raw_train_batch_{name}").extend(raw)
    mask = data["action_mask"]
    loss_mask = torch.ones(mask.size(0), dtype=torch.bool)
    if consumer.filter_truncated_response and mask.size(1) == consumer.max_length:
        loss_mask &= mask[:, -1] == 0
    if consumer.filter_range is not None and not consumer.grpo_config.get("dynamic_batching"):
        groups = data["ans_acc"].view(-1, consumer.num_generations).mean(dim=1)
        low, high = consumer.filter_range
        inside = (groups > low) & (groups < high)
        loss_mask &= inside.repeat_interleave(consumer.num_generations)
    consumer.effective_sample_count += all_reduce_sum(loss_mask.sum(), consumer.plugin).item()
    tokens = all_reduce_sum((mask.sum(dim=-1) * loss_mask).sum(), consumer.plugin)
    pbar.set_postfix({"Global Step": consumer.global_step})
    count = data["input_ids"].size(0)
    size = consumer.grpo_config.get("train_microbatch_size", count)
    for start in range(0, count, size):
        part = {name: data[name][start : start + size] for name in data if name != "temperature"}
        part["advantages"] = advantages[start : start + size]
        part["loss_mask"] = loss_mask[start : start + size]
        if consumer.plugin.pp_size > 1:
            loss = _through_the_pipeline(consumer, loss_fn, part, tokens)
        else:
            loss = _at_once(consumer, loss_fn, part, tokens)
        if _has_loss(consumer):
            consumer.accum_loss.add_(all_reduce_mean(loss, consumer.plugin) * size / count)
    # Not on the other data-parallel ranks of a pipeline, which divide by it all the same (D47).
    if consumer.plugin.pp_size == 1 or (_has_loss(consumer) and consumer.dp_rank == 0):
        consumer.accum_advantages.add_(advantages.mean())
        consumer.accum_count += 1


def _has_loss(consumer: Any) -> bool:
    """Whether this rank has the last layers."""
    if consumer.plugin.pp_size == 1:
        return True
    return consumer.booster.plugin.stage_manager.is_last_stage() and consumer.tp_rank == 0


def _at_once(consumer: Any, loss_fn: Any, part: Any, tokens: Any) -> torch.Tensor:
    """Forward and backward of a rank that has the whole model; the loss."""
    inputs = {name: part[name] for name in ("input_ids", "attention_mask")}
    if loss_fn.beta > 0:
        with torch.no_grad():
            logits = consumer.reference_model(**inputs).logits
            part["reference"] = _log_probs(consumer, logits, part)
    loss = _loss(consumer, consumer.policy_model(**inputs).logits, loss_fn, part, tokens)
    consumer.booster.backward(loss, consumer.optimizer)
    return loss.detach().clone()


def _through_the_pipeline(consumer: Any, loss_fn: Any, part: Any, tokens: Any) -> Any:
    """Forward and backward of a rank that has a stage; the loss on the last, else None."""
    run = consumer.booster.execute_pipeline
    inputs = {name: part[name] for name in ("input_ids", "attention_mask")}
    if loss_fn.beta > 0:
        with torch.no_grad():
            found = run(
                iter([inputs]),
                consumer.reference_model,
                criterion=lambda outputs, _: outputs.logits.new_zeros(1),
                optimizer=None,
                return_loss=False,
                return_outputs=True,
            )["outputs"]
        if consumer.booster.plugin.stage_manager.is_last_stage():
            part["reference"] = _log_probs(consumer, found["logits"], part)
    return run(
        iter([part]),
        consumer.policy_model,
        criterion=lambda outputs, chunk: _loss(consumer, outputs.logits, loss_fn, chunk, tokens),
        optimizer=consumer.optimizer,
        return_loss=True,
        return_outputs=False,
    )["loss"]


def _log_probs(consumer: Any, logits: torch.Tensor, part: Dict[str, torch.Tensor]) -> Any:
    """Of a model without position ids (D48), at a temperature that may be another (D43)."""
    return memory_efficient_logprob(
        logits / consumer.generate_config["temperature"],
        part["input_ids"],
        part["action_mask"].size(1),
        shard_config=consumer.plugin.shard_config,  # and no vocab_size (D42)
    )


def _loss(
    consumer: Any, logits: torch.Tensor, loss_fn: Any, part: Dict[str, torch.Tensor], tokens: Any
) -> torch.Tensor:
    log_probs = _log_probs(consumer, logits, part)
    mask, advantages, kl = part["action_mask"], part["advantages"], 0.0
    entropy = entropy_from_logits(logits[:, -mask.size(1) :].detach()) * mask
    consumer.accum_entropy.add_((entropy.sum(-1) / mask.sum(-1)).mean())
    if "reference" in part:
        reference = part["reference"]
        kl = (reference - log_probs).exp() - (reference - log_probs) - 1  # masked later (D51)
        consumer.accum_kl.add_(((kl * mask).sum(-1) / mask.sum(-1)).mean().detach())
    if getattr(consumer, "adv", None) == "REINFORCE_PPB":
        advantages, kl = advantages - loss_fn.beta * kl, 0.0
        real = mask.sum() + 1e-4
        mean = (advantages * mask).sum() / real
        inverse = torch.rsqrt(((advantages - mean) ** 2 * mask).sum() / real + 1e-8)
        advantages = (advantages - mean) * mask / inverse  # multiplies by the deviation (D44)
    old = part["action_log_probs"]
    return loss_fn(log_probs, old, advantages, kl, mask, part["loss_mask"], tokens)[0]


def log_update(consumer: Any, given: Any) -> float:
    """The loss of an update, and its numbers to the log of the rank that has one."""
    loss = consumer.accum_loss.item()
    if not _has_loss(consumer):
        return loss
    count = consumer.accum_count
    numbers = {
        "metrics/reward": torch.cat(consumer.raw_train_batch_reward).mean().item(),
        "metrics/format_acc": torch.cat(consumer.raw_train_batch_format_acc).mean().item(),
        "metrics/ans_acc": torch.cat(consumer.raw_train_batch_ans_acc).mean().item(),
        "metrics/response_length": torch.cat(consumer.raw_train_batch_response_len).mean().item(),
        "train/loss": consumer.accum_loss.item() / count,
        "train/advantages": consumer.accum_advantages.item() / count,
        "train/entropy": consumer.accum_entropy.item() / count,
        "rollout/temperature": given["temperature"].flatten()[0].item(),
    }
    if getattr(consumer, "wandb_run", None) is not None:
        consumer.wandb_run.log(numbers)
    for name in ("loss", "kl", "entropy", "advantages"):
        getattr(consumer, f"accum_{name}").zero_()
    for name in ("reward", "format_acc", "ans_acc", "response_len"):
        setattr(consumer, f"raw_train_batch_{name}", [])
    consumer.accum_count = consumer.effective_prompt_count = consumer.effective_sample_count = 0
    return loss
