"""The demo's training script. It uses coati only and contains no code for patches."""

from __future__ import annotations

import json
import sys
import time

import coati_ext._startup  # noqa: F401  what coati_ext.pth does, for checkouts that lack it
from coati_ext.cli.child import tell


def main(family: str, pairs: int, episodes: int, seeds: int, seed: int) -> None:
    """Train a reward model, then a policy with each seed, and print what came out as JSON."""
    import torch

    from coati_ext.demo import policy, reward
    from coati_ext.demo.task import ANSWER

    torch.set_num_threads(1)
    total, step = 1 + seeds * (1 + episodes), 1
    tell(0, total, "a reward model")
    scored = reward.measure(family, seed, pairs)
    curves = []
    for number in range(seeds):
        tell(step, total, f"fine-tuning, seed {seed + number}")

        def done(number: int = number) -> None:
            nonlocal step
            step += 1
            tell(step, total, f"PPO, seed {seed + number}")

        curves.append(policy.learn(family, seed + number, episodes, done))
    seconds = time.process_time()
    found = {"reward": scored, "policy": curves, "cpu_seconds": seconds}
    print(json.dumps({**found, "answers": policy.ROLLOUTS * policy.ROWS, "longest": ANSWER}))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
