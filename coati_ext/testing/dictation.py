"""An actor whose answers are given: coati's own sampler "samples" them.

Letters: B rows, C columns so far, S sequence columns, V vocabulary.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Dict, Optional, Sequence

import torch
from torch import Tensor, nn

from coati_ext.testing.training import has_strategies

_CERTAIN = 1e4  # a logit that leaves nothing to chance


def dictating_actor(
    rows: Sequence[Sequence[int]], *, eos_token_id: int, vocab_size: int
) -> nn.Module:
    """Return an actor of the importable coati that continues prompts as given.

    Args:
        rows: prompt and answer together, without pads, one for each row of the batch.
        eos_token_id: what comes after the end of a row.
        vocab_size: V.

    Raises:
        ImportError: no coati can be imported.
    """
    model = _Dictated(rows, eos_token_id, vocab_size)
    if not has_strategies():
        return model
    actor: nn.Module = import_module("coati.models.base").Actor(model)
    return actor


class _Dictated(nn.Module):
    def __init__(self, rows: Sequence[Sequence[int]], end: int, vocab_size: int) -> None:
        super().__init__()
        script = torch.full((len(rows), max(map(len, rows)) + 1), end)
        for line, row in zip(script, rows):
            line[: len(row)] = torch.tensor(row, dtype=torch.long)
        self._script, self._vocab_size = script, vocab_size
        self.scale = nn.Parameter(torch.ones(()))  # trainers want something to train

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Optional[Tensor] = None,
        position_ids: Optional[Tensor] = None,
        sampling: bool = False,
        **_: Any,
    ) -> Dict[str, Tensor]:
        """Logits (B, 1, V) of the next tokens while sampling, else (B, S, V), all alike."""
        if not sampling:
            shape = (*input_ids.shape, self._vocab_size)
            return {"logits": self.scale * torch.zeros(shape)}
        assert attention_mask is not None
        done = attention_mask.long().sum(dim=1, keepdim=True)
        following = self._script.gather(1, done.clamp(max=self._script.size(1) - 1))
        logits = nn.functional.one_hot(following, self._vocab_size).float()
        return {"logits": self.scale * _CERTAIN * logits}

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Tensor, **_: Any
    ) -> Dict[str, Any]:
        """The inputs of a forward for the next tokens."""
        return {"input_ids": input_ids, "attention_mask": attention_mask, "sampling": True}

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: Dict[str, Any], **_: Any
    ) -> Dict[str, Any]:
        mask = model_kwargs["attention_mask"]
        grown = torch.cat([mask, mask.new_ones(mask.size(0), 1)], dim=1)
        return {**model_kwargs, "attention_mask": grown}
