"""Record the tokenizers that coati's datasets, reward trainer and experience maker use."""

from __future__ import annotations

from typing import Any, Callable

from .judgement import compare_rows
from .this_run import rows_seen, see


def reward_dataset(
    original: Callable[..., None],
    self: Any,
    dataset: Any,
    tokenizer: Any,
    *args: Any,
    **kwargs: Any,
) -> None:
    """Record the tokenizer of a reward model's training rows, in G1 and G2."""
    see(tokenizer)
    original(self, dataset, tokenizer, *args, **kwargs)


def reward_trainer(original: Callable[..., None], self: Any, *args: Any, **kwargs: Any) -> None:
    """Record the tokenizer of a reward model's training rows, in G3 and G4; compare the stamp."""
    original(self, *args, **kwargs)
    see(self.tokenizer)
    compare_rows(self.model)


def make_experience(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """Record tokenizer and EOS token in PPO; compare the reward model's stamp before it scores."""
    see(getattr(self, "tokenizer", None))
    if not hasattr(self, "tokenizer") and "eos_token_id" in kwargs:  # G1's maker has only ids
        rows_seen.end_token = kwargs["eos_token_id"]
    compare_rows(self.reward_model)
    return original(self, *args, **kwargs)
