"""Log-probabilities of tokens from hidden states and an output head of any kind.

Letters: T tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from coati_ext import tensors

_AT_ONCE = 256  # tokens, whose logits are held


def log_probs_of(head: nn.Module, hidden: Tensor, ids: Tensor) -> Tensor:
    """The log-probability of a token at each hidden state, (T,), without all logits at once.

    Args:
        head: from (T, H) to logits (T, V).
        hidden: (T, H) floating point.
        ids: (T,) integer, from 0 to V - 1.
    """
    if isinstance(head, nn.Linear) and _plain(head):
        return tensors.head_log_probs(hidden, head.weight, head.bias, ids)

    def of_part(hidden: Tensor, ids: Tensor) -> Tensor:
        return tensors.selected_log_probs(head(hidden), ids)

    parts = zip(torch.split(hidden, _AT_ONCE), torch.split(ids, _AT_ONCE))
    return torch.cat([checkpoint(of_part, *part, use_reentrant=False) for part in parts])


def _plain(head: nn.Linear) -> bool:
    """Whether a head is a product with its weight and no more.

    Adapters and parallel heads are classes of their own. Gemini gathers its parameters, which are
    a class of their own, within operations that are called with them.
    """
    hooks = (head._forward_hooks, head._forward_pre_hooks, head._backward_hooks)
    return (
        type(head) is nn.Linear
        and "forward" not in vars(head)
        and not any(hooks)
        and type(head.weight) in (Tensor, nn.Parameter)
    )
