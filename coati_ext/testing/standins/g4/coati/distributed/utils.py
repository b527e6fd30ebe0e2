from __future__ import annotations

from typing import Any, Dict, List, Optional

import torch
import torch.distributed as dist


def unbind_batch(batch: Dict[str, torch.Tensor]) -> List[Dict[str, torch.Tensor]]:
    """One dict per prompt."""
    columns = {name: item.unbind(0) for name, item in batch.items()}
    (count,) = {len(items) for items in columns.values()}
    return [{name: items[i] for name, items in columns.items()} for i in range(count)]


def bind_batch(batches: List[Dict[str, torch.Tensor]]) -> Dict[str, torch.Tensor]:
    return {name: torch.stack([item[name] for item in batches]) for name in batches[0]}


def _masks_as(batch: Dict[str, torch.Tensor], dtype: torch.dtype) -> Dict[str, torch.Tensor]:
    for name in ("attention_mask", "action_mask"):
        if name in batch:
            batch[name] = batch[name].to(dtype)
    return batch


def pre_send(batch: Dict[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
    return _masks_as(batch, torch.bool)


def post_recv(batch: Dict[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
    return _masks_as(batch, torch.int)


class _Shard:
    """Where a rank's part of the vocabulary begins, as ColossalAI reckons it."""

    def __init__(self, logits: torch.Tensor, group: Any, vocab_size: Optional[int]) -> None:
        ranks = dist.get_world_size(group)
        whole = logits.size(-1) * ranks if vocab_size is None else vocab_size
        self.start = dist.get_rank(group) * -(-whole // ranks)
        self.end = min(self.start + -(-whole // ranks), whole)


class _ShardedLogProb(torch.autograd.Function):
    """log_softmax over a vocabulary whose parts lie on the ranks of a group."""

    @staticmethod
    def forward(ctx, logits, ids, group, vocab_size):
        shard = _Shard(logits, group, vocab_size)
        peak = logits.max(dim=-1, keepdim=True).values
        dist.all_reduce(peak, op=dist.ReduceOp.MAX, group=group)
        grown = (logits - peak).exp()
        total = grown.sum(dim=-1, keepdim=True)
        dist.all_reduce(total, group=group)
        inside = ((ids >= shard.start) & (ids < shard.end)).unsqueeze(-1)
        column = (ids.unsqueeze(-1) - shard.start).masked_fill(~inside, 0)
        chosen = (logits - peak - total.log()).gather(-1, column).masked_fill(~inside, 0)
        dist.all_reduce(chosen, group=group)
        ctx.save_for_backward(grown / total, column, inside)
        return chosen

    @staticmethod
    def backward(ctx, gradient):
        share, column, inside = ctx.saved_tensors
        back = -share * gradient
        back.scatter_add_(-1, column, gradient * inside)
        return back, None, None, None


def dist_log_prob(ids, logits, shard_config, vocab_size):
    """ColossalAI's, which upstream imports from there."""
    ids, logits = ids[..., 1:], logits[..., :-1, :]
    if shard_config.enable_tensor_parallelism and shard_config.parallel_output:
        group = shard_config.tensor_parallel_process_group
        return _ShardedLogProb.apply(logits, ids, group, vocab_size)
    return torch.log_softmax(logits, dim=-1).gather(-1, ids.unsqueeze(-1))


def memory_efficient_logprob(
    logits: torch.Tensor,
    inputs: torch.Tensor,
    num_action: int,
    chunk_size: int = 2048,
    shard_config: Any = None,
    vocab_size: Optional[int] = None,
) -> torch.Tensor:
    """The log-probabilities of the last tokens, (B, A), row by row."""
    rows = []
    first = logits.size(1) - num_action
    for row, ids in zip(logits.split(1), inputs.split(1)):
        parts = []
        for start in range(first, logits.size(1), chunk_size):
            part = slice(start - 1, min(start + chunk_size, logits.size(1)))
            found = dist_log_prob(ids[:, part], row[:, part], shard_config, vocab_size)
            parts.append(found.squeeze(-1))
        rows.append(torch.cat(parts, dim=1))
    return torch.cat(rows)


def entropy_from_logits(logits: torch.Tensor) -> torch.Tensor:
    return logits.logsumexp(dim=-1) - (logits.softmax(dim=-1) * logits).sum(dim=-1)


def masked_mean(tensor: torch.Tensor, mask: torch.Tensor, dim: int = 1) -> torch.Tensor:
    return (tensor * mask).sum(dim=dim) / (mask.sum(dim=dim) + 1e-8)


def masked_sum(tensor: torch.Tensor, mask: torch.Tensor, dim: int = 1) -> torch.Tensor:
    return (tensor * mask).sum(dim=dim)
