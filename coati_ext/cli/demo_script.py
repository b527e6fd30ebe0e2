"""The demo's training script. It uses coati only and contains no code for patches."""

from __future__ import annotations

import json
import sys
import time

import coati_ext._startup  # noqa: F401  what coati_ext.pth does, for checkouts that lack it


def main(family: str, pairs: int, held_out: int, epochs: int, seed: int) -> None:
    """Train, evaluate, and print the numbers as JSON."""
    import torch

    from coati_ext.testing import (
        chosen_rows,
        cpu_only,
        layouts,
        pair_accuracy,
        preference_pairs,
        tiny_reward_model,
        tiny_tokenizer,
        train_reward_model,
    )

    tokenizer = tiny_tokenizer(pad="eos")  # as coati's own scripts set it
    data = preference_pairs(pairs + held_out, seed=seed)
    train, test = data[:pairs], data[pairs:]
    model = tiny_reward_model(family, seed=seed, vocab_size=len(tokenizer), hidden_size=64)
    with cpu_only():
        start = time.perf_counter()
        train_reward_model(model, train, tokenizer=tokenizer, epochs=epochs, seed=seed)
        seconds = time.perf_counter() - start
        cut = chosen_rows(test, tokenizer=tokenizer, max_length=128)

    rows = [tokenizer(pair["prompt"] + pair["chosen"])["input_ids"][-100:] for pair in test[:32]]
    with torch.no_grad():
        singles = [torch.tensor([row]) for row in rows]
        alone = torch.cat([model(ids, torch.ones_like(ids)) for ids in singles])
        padded = [model(ids, mask) for _, ids, mask in layouts(rows, pad_token_id=2, width=256)]
    print(
        json.dumps(
            {
                "accuracy_right_padded": pair_accuracy(model, test, tokenizer=tokenizer),
                "accuracy_left_padded": pair_accuracy(
                    model, test, tokenizer=tokenizer, side="left"
                ),
                "padding_shift": max(float((item - alone).abs().max()) for item in padded),
                "reward_spread": float(alone.std()),
                "end_tokens_kept": sum(int(ids[mask][-1]) == 2 for ids, mask in cut) / len(cut),
                "seconds": seconds,
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
