"""One update of the policy, whatever its split: the same gradient, scaled once.

The rows of an update come in minibatches, are computed in microbatches, and under pipeline
parallelism in chunks of these, on several data-parallel ranks. Letters: B rows, S sequence columns,
A action columns, V vocabulary.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Dict, List, NamedTuple, Optional, Tuple

from coati_ext import choice, tensors
from coati_ext.rollout.models import accepts, layers_of, without_dropout

from .algorithms import OVER_THE_BATCH

if TYPE_CHECKING:
    from torch import Tensor

Rows = Dict[str, "Tensor"]
"""Tensors of B rows each, on this rank."""


class Whole(NamedTuple):
    """What the loss of an update is averaged over."""

    rows: int
    """On each data-parallel rank."""
    tokens: Optional[Tensor]
    """The real actions of all ranks; ``None`` where each row is averaged by itself."""
    ranks: int
    """By whose number ColossalAI divides the sum of their gradients."""


class Algorithm(NamedTuple):
    """What the user has asked for in ``grpo_config``."""

    name: str
    variation: str
    beta: float
    clip: Tuple[float, float]

    @classmethod
    def of(cls, consumer: Any) -> Algorithm:
        """That of a consumer; ``zero_bubble`` has only GRPO, and says so nowhere."""
        told = consumer.policy_loss_fn
        name = getattr(consumer, "adv", None) or "GRPO"
        return cls(name, told.loss_variation, told.beta, (told.clip_eps_low, told.clip_eps_high))

    @property
    def waits(self) -> bool:
        """Whether a minibatch cannot be learnt from before the last of its update is there."""
        return self.variation == "token_level" or self.name in OVER_THE_BATCH


def learn(consumer: Any, rows: Rows, last: bool) -> None:
    """Accumulate the gradient of a minibatch, or keep it until the last of its update.

    Args:
        consumer: upstream's ``GRPOConsumer``.
        rows: of :func:`rows_of`.
        last: whether the optimizer steps after this one.
    """
    import torch
    from coati.trainer.utils import all_reduce_sum

    without_dropout(consumer.policy_model)  # the sampler has none
    algorithm = Algorithm.of(consumer)
    waiting: List[Rows] = vars(consumer).setdefault("_minibatches", [])
    waiting.append(rows)
    if algorithm.waits and not last:
        return
    whole = {name: torch.cat([part[name] for part in waiting]) for name in rows}
    waiting.clear()
    trained = whole["action_mask"] & whole["loss_mask"].unsqueeze(1)
    with torch.no_grad():
        whole["advantages"] = choice("group_advantages")(
            whole["reward"], trained, consumer.num_generations, algorithm.name
        )
    tokens = None
    if algorithm.variation == "token_level":
        tokens = all_reduce_sum(trained.sum(), consumer.plugin)
    over = Whole(consumer.batch_size * consumer.num_generations, tokens, consumer.dp_size)
    # ZeRO 2 keeps no gradients but those that are reduced.
    context: Any = nullcontext()
    if not last and consumer.booster.plugin.zero_stage != 2:
        context = consumer.booster.no_sync(consumer.policy_model, consumer.optimizer)
    with context:
        _accumulate(consumer, whole, algorithm, over)


def _accumulate(consumer: Any, rows: Rows, algorithm: Algorithm, whole: Whole) -> None:
    """Run forward and backward over all microbatches."""
    count = rows["input_ids"].size(0)
    size = consumer.grpo_config.get("train_microbatch_size", count)
    step = _through_the_pipeline if consumer.plugin.pp_size > 1 else _at_once
    for start in range(0, count, size):
        part = {name: item[start : start + size] for name, item in rows.items()}
        step(consumer, part, algorithm, whole)


def _at_once(consumer: Any, part: Rows, algorithm: Algorithm, whole: Whole) -> None:
    """Forward and backward of a microbatch where every rank has the whole model."""
    import torch

    if algorithm.beta > 0:
        with torch.no_grad():
            logits = consumer.reference_model(**_inputs(consumer.reference_model, part)).logits
            part["reference_log_probs"] = _log_probs(consumer, logits, part)
    logits = consumer.policy_model(**_inputs(consumer.policy_model, part)).logits
    loss = _loss(consumer, logits, part, part["input_ids"].size(0), algorithm, whole)
    consumer.booster.backward(loss, consumer.optimizer)


def _through_the_pipeline(consumer: Any, part: Rows, algorithm: Algorithm, whole: Whole) -> None:
    """Forward and backward of a microbatch in chunks, over ranks that have a stage each."""
    import torch

    last = consumer.booster.plugin.stage_manager.is_last_stage()
    if algorithm.beta > 0:
        with torch.no_grad():
            outputs = consumer.booster.execute_pipeline(
                iter([_inputs(consumer.reference_model, part)]),
                consumer.reference_model,
                criterion=lambda outputs, _: outputs.logits.new_zeros(1),
                return_loss=False,
                return_outputs=True,
            )["outputs"]
        if last:
            part["reference_log_probs"] = _log_probs(consumer, outputs["logits"], part)
    done = 0

    def criterion(outputs: Any, _: Any) -> Tensor:
        nonlocal done
        end = done + outputs.logits.size(0)
        chunk = {name: item[done:end] for name, item in part.items()}
        done = end
        size = part["input_ids"].size(0)
        return _loss(consumer, outputs.logits, chunk, size, algorithm, whole)

    consumer.booster.execute_pipeline(
        iter([_inputs(consumer.policy_model, part)]),
        consumer.policy_model,
        criterion=criterion,
        optimizer=consumer.optimizer,
        return_loss=True,
        return_outputs=False,
    )


def _loss(
    consumer: Any, logits: Tensor, chunk: Rows, size: int, algorithm: Algorithm, whole: Whole
) -> Tensor:
    """What some rows add to the loss of the update, times the chunks of their microbatch.

    The schedule of a pipeline averages over these.

    Args:
        consumer: upstream's ``GRPOConsumer``.
        logits: (B, S, V) of the rows, or this rank's part of the vocabulary.
        chunk: the rows.
        size: the number of rows of the microbatch that they are part of.
        algorithm: the user's.
        whole: what the loss is averaged over.
    """
    mask = chunk["action_mask"]
    log_probs = _log_probs(consumer, logits, chunk)
    losses = choice("action_losses")(
        log_probs,
        chunk["old_log_probs"],
        chunk.get("reference_log_probs"),
        chunk["advantages"],
        mask,
        algorithm.clip,
        algorithm.beta,
        algorithm.name,
    )
    rows = losses.masked_fill(~mask, 0).sum(dim=1)
    share = size / whole.rows
    if whole.tokens is None:
        rows = rows / (mask.sum(dim=1) + 1e-8) * chunk["loss_mask"]
        loss = rows.mean() * share
    else:
        chunks = size / rows.size(0)
        rows = rows * chunk["loss_mask"]
        loss = rows.sum() / (whole.tokens + 1e-8) * (whole.ranks * chunks)
    _note(consumer, logits, log_probs, loss, chunk, size)
    result: Tensor = loss
    return result


def _log_probs(consumer: Any, logits: Tensor, rows: Rows) -> Tensor:
    """Log-probabilities of the actions, (B, A), at the temperature that they were sampled at.

    Args:
        consumer: upstream's ``GRPOConsumer``.
        logits: (B, S, V), or this rank's part of the vocabulary.
        rows: ``input_ids`` (B, S), ``action_mask`` (B, A), ``temperature`` (B,).
    """
    from coati.distributed.utils import memory_efficient_logprob

    actions = rows["action_mask"].size(1)
    before = logits[:, -actions - 1 :]
    # In the dtype of the temperatures, since 0.9 is 0.898 in bfloat16.
    cooled = (before / rows["temperature"].view(-1, 1, 1)).to(logits.dtype)
    result: Tensor = memory_efficient_logprob(
        cooled,
        rows["input_ids"][:, -actions - 1 :],
        actions,
        shard_config=consumer.plugin.shard_config,
        vocab_size=_padded_vocabulary(consumer.policy_model),
    )
    return result


def _padded_vocabulary(model: Any) -> Optional[int]:
    """The vocabulary that tensor parallelism divides among its ranks.

    The last rank's logits lack the padding, so its share tells nothing of where it begins.
    """
    for layer in layers_of(model):
        if hasattr(layer, "get_output_embeddings"):
            return getattr(layer.get_output_embeddings(), "out_features", None)
    return None


def _inputs(model: Any, rows: Rows) -> Dict[str, Any]:
    """What a model is called with: positions too, unless it knows only their differences.

    Rotary models are upstream's bit for bit without them, and no more exact with them.
    """
    given: Dict[str, Any] = {name: rows[name] for name in ("input_ids", "attention_mask")}
    rotary = any("rotary" in name for name, _ in model.named_modules())
    if not rotary and accepts(model, "position_ids"):
        given["position_ids"] = tensors.position_ids(rows["attention_mask"] != 0)
    return given


def _note(
    consumer: Any, logits: Tensor, log_probs: Tensor, loss: Tensor, chunk: Rows, size: int
) -> None:
    """Add to what is logged at the end of the update, where each row counts alike."""
    import torch
    from coati.distributed.utils import entropy_from_logits

    mask = chunk["action_mask"]
    actions = mask.sum(dim=1).clamp(min=1)
    with torch.no_grad():
        share = chunk["input_ids"].size(0) / (consumer.batch_size * consumer.num_generations)
        consumer.accum_loss.add_(loss * (chunk["input_ids"].size(0) / size))
        entropy = entropy_from_logits(logits[:, -mask.size(1) :]) * mask
        consumer.accum_entropy.add_((entropy.sum(dim=1) / actions).mean() * share)
        advantages = chunk["advantages"].sum(dim=1) / actions
        consumer.accum_advantages.add_(advantages.mean() * share)
        if "reference_log_probs" in chunk:
            gap = (chunk["reference_log_probs"] - log_probs).masked_fill(~mask, 0)
            kl = tensors.kl_estimate(-gap, "k3").sum(dim=1) / actions
            consumer.accum_kl.add_(kl.mean() * share)
