"""Attention of packed tokens: each run to the runs above it and, causally, to itself.

Letters: T packed tokens, N heads, D head size.
"""

from __future__ import annotations

from typing import Any, List, Optional, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from coati_ext.rollout.packing.tree import Node

SDPA = getattr(torch.nn.functional, "scaled_dot_product_attention", None)  # since torch 2.0


class Segments:
    """The runs of one packed batch, and the masks of those that have others above them."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = nodes
        self.lengths = [node.length for node in nodes]
        self.longest = max(
            node.length + sum(nodes[index].length for index in node.above) for node in nodes
        )
        self.asked = 0
        """How often the attention of this batch was asked for."""
        self.attended = False
        """Whether a backbone's attention is that of this batch just now."""
        self._masks: List[Optional[Tensor]] = [None] * len(nodes)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0, **more: Any
    ) -> Tensor:
        """Attention (1, N, T, D) of queries, keys and values (1, N, T, D).

        Args:
            query: (1, N, T, D).
            key: (1, N, T, D).
            value: (1, N, T, D).
            dropout: probability of dropping a weight.
            more: ``scale`` (1 / sqrt(D) by default) and what else PyTorch's function takes.
        """
        self.asked += 1
        # Not slices: the backward of each would fill a gradient of all T tokens.
        parts = [torch.split(item, self.lengths, dim=2) for item in (query, key, value)]
        found = []
        for index, node in enumerate(self.nodes):
            q, k, v = (item[index] for item in parts)
            if node.above:
                k, v = (torch.cat([part[i] for i in (*node.above, index)], 2) for part in parts[1:])
            found.append(_attention(q, k, v, self._mask(index, q), dropout, more))
        return torch.cat(found, dim=2) if len(found) > 1 else found[0]

    def _mask(self, index: int, query: Tensor) -> Optional[Tensor]:
        """What is added to the scores of a run with others above it: (queries, keys)."""
        node = self.nodes[index]
        if not node.above:
            return None
        mask = self._masks[index]
        if mask is None or mask.dtype != query.dtype:
            own = torch.full((node.length, node.length), float("-inf"), device=query.device).triu(1)
            before = sum(self.nodes[i].length for i in node.above)
            mask = self._masks[index] = pad(own, (before, 0)).to(query.dtype)
        return mask


def _attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Optional[Tensor], dropout: float, more: Any
) -> Tensor:
    if SDPA is not None:
        causal = mask is None
        found: Tensor = SDPA(query, key, value, mask, dropout, is_causal=causal, **more)
        return found
    scale = more.get("scale") or query.size(-1) ** -0.5
    scores = (query * scale) @ key.transpose(2, 3)
    if mask is None:
        size = query.size(2)
        mask = torch.full((size, size), float("-inf"), device=query.device).triu(1)
    wide = torch.promote_types(query.dtype, torch.float32)
    weights = (scores + mask).to(wide).softmax(dim=-1).to(query.dtype)
    return torch.nn.functional.dropout(weights, dropout) @ value
