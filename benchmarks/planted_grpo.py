"""Train a planted task by the real step of coati.distributed, with and without the patches.

    python benchmarks/planted_grpo.py --coati PATH

A policy is rewarded for the share of its tokens from a quarter of the vocabulary, 10 at best. The
sampler does what upstream's producer does: its temperature goes from the user's to 0.9 in the first
episode, and stays there. The table is the score of fresh answers at the user's temperature.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import warnings
from pathlib import Path
from typing import Any, Dict, List, Tuple

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import coati_ext  # noqa: E402
from coati_ext.testing import cpu_only, grpo_consumer, learn, tiny_config  # noqa: E402

PROMPTS, GENERATIONS, TOKENS = 16, 8, 12
EPISODES, STEPS = 3, 15
VOCABULARY = 64
TEMPERATURES, SEEDS = (0.6, 0.8, 1.0), (0, 1, 2)


def main() -> None:
    """Print a row of the table for each temperature."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--coati", required=True, help="a folder that holds coati/")
    given = parser.parse_args()
    sys.path.insert(0, given.coati)
    torch.set_num_threads(1)
    print("| temperature | before | off | on |")
    print("|---|---|---|---|")
    for temperature in TEMPERATURES:
        runs = [(train(temperature, seed, False), train(temperature, seed, True)) for seed in SEEDS]
        before = sum(off[0] for off, _ in runs) / len(runs)
        cells = [shown([pair[on][1] for pair in runs]) for on in (0, 1)]
        print(f"| {temperature} | {before:.1f} | {' | '.join(cells)} |", flush=True)


def shown(scores: List[float]) -> str:
    """The mean of some scores, and each."""
    each = ", ".join(f"{score:.1f}" for score in scores)
    return f"{sum(scores) / len(scores):.1f} ({each})"


def train(temperature: float, seed: int, on: bool) -> Tuple[float, float]:
    """The score of fresh answers before and after a training."""
    import transformers

    patches: Any = coati_ext.applied() if on else contextlib.nullcontext()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), cpu_only(), patches:
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        config = tiny_config("llama", vocab_size=VOCABULARY)
        policy = transformers.AutoModelForCausalLM.from_config(config)
        reference = transformers.AutoModelForCausalLM.from_config(config).eval()
        reference.load_state_dict(policy.state_dict())
        optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
        consumer = grpo_consumer(
            policy,
            reference,
            optimizer,
            generations=GENERATIONS,
            batch_size=PROMPTS,
            temperature=temperature,
            beta=0.01,
        )
        before = score(answers(policy, 256, temperature)[0])
        degree = temperature
        for episode in range(EPISODES):
            for step in range(STEPS):
                learn(consumer, rollout(policy, degree), step)
                if episode == 0:
                    degree = temperature + (0.9 - temperature) * step / STEPS
        return before, score(answers(policy, 256, temperature)[0])


def score(ids: Tensor) -> float:
    """The mean reward of answers."""
    return float(rewards(ids).mean())


def rewards(ids: Tensor) -> Tensor:
    """10 times the share of tokens that are multiples of 4, (B,), of rows (B, S)."""
    return 10 * (ids[:, 2:] % 4 == 0).float().mean(dim=1)


def answers(policy: Any, count: int, degree: float) -> Tuple[Tensor, Tensor]:
    """Prompts of two tokens with answers, (B, S), and the log-probabilities of these, (B, A)."""
    first = torch.randint(3, VOCABULARY, (-(-count // GENERATIONS), 2))
    ids = first.repeat_interleave(GENERATIONS, dim=0)[:count]
    log_probs = []
    training = policy.training
    policy.eval()
    with torch.no_grad():
        for _ in range(TOKENS):
            found = (policy(input_ids=ids).logits[:, -1] / degree).log_softmax(dim=-1)
            token = torch.multinomial(found.exp(), 1)
            log_probs.append(found.gather(1, token))
            ids = torch.cat([ids, token], dim=1)
    policy.train(training)
    return ids, torch.cat(log_probs, dim=1)


def rollout(policy: Any, degree: float) -> Dict[str, Tensor]:
    """What a producer sends."""
    ids, log_probs = answers(policy, PROMPTS * GENERATIONS, degree)
    reward = rewards(ids)
    mask = torch.ones_like(ids).int()
    rows = {
        "input_ids": ids,
        "attention_mask": mask,
        "action_mask": mask[:, 2:],
        "action_log_probs": log_probs,
        "response_idx": torch.tensor([[2, 1 + TOKENS]]).expand(len(ids), -1),
        **{name: reward.unsqueeze(1) for name in ("reward", "format_acc", "ans_acc")},
    }
    groups = {name: item.reshape(PROMPTS, GENERATIONS, -1) for name, item in rows.items()}
    return {**groups, "temperature": torch.full((PROMPTS,), degree)}


if __name__ == "__main__":
    main()
