"""The demo's training script: it uses coati alone and does not know of any patch."""

from __future__ import annotations

import json
import sys
import time
from typing import List

import coati_ext._startup  # noqa: F401  what coati_ext.pth does, for checkouts that lack it


def main(family: str, pairs: int, held_out: int, epochs: int, seed: int) -> None:
    """Train, evaluate, and print the numbers as JSON."""
    import torch
    from coati_ext.testing import (
        cpu_only,
        encode_pairs,
        layouts,
        pair_accuracy,
        preference_pairs,
        tiny_reward_model,
        tiny_tokenizer,
        train_reward_model,
    )

    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer(pad="eos")
    data = preference_pairs(pairs + held_out, seed=seed)
    train, test = data[:pairs], data[pairs:]
    model = tiny_reward_model(family, seed=seed, vocab_size=len(tokenizer), hidden_size=64)
    start = time.perf_counter()
    with cpu_only():
        train_reward_model(model, train, tokenizer=tokenizer, epochs=epochs, seed=seed)
    seconds = time.perf_counter() - start
