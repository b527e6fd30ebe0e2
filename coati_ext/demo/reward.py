"""A reward model trained by coati's own trainer, and what becomes of its scores.

Letters: B rows, S sequence columns.
"""

from __future__ import annotations

import random
from typing import Any, Dict, List, Mapping, Sequence, Tuple

import torch
from torch import Tensor

from coati_ext.demo.task import ANSWER, LENGTH, pairs
from coati_ext.testing.cpu import cpu_only
from coati_ext.testing.dictation import dictating_actor
from coati_ext.testing.padding import layouts, pad_rows
from coati_ext.testing.rollouts import Models, experience_maker, make_experience, tiny_models
from coati_ext.testing.text import tiny_tokenizer
from coati_ext.testing.training import chosen_rows, has_strategies, train_reward_model

Facts = Dict[str, Any]
HELD_OUT, PADDED = 200, 32  # pairs scored, rows padded in other ways
PADS = 24  # of a row at most
_DRAWN = 6  # rows whose rewards are given for each number of pads


def measure(family: str, seed: int, count: int) -> Facts:
    """Train on so many pairs, then score what was held out in the forms that coati gives it.

    Returns:
        "trained" and "in_ppo", the scores of chosen and rejected answers (two lists each) in rows
        of reward-model training and in experience; "spread", their standard deviation; "moves",
        by how much padding moves each of some rows at most; and "by_pads", rewards of a few rows
        for each number of pads on the left.
    """
    # As in upstream's scripts: the end token pads, on the left only where answers are sampled.
    left, right = (tiny_tokenizer(pad="eos", padding_side=side) for side in ("left", "right"))
    draw = random.Random(seed)
    train, test = pairs(count, draw), pairs(HELD_OUT, draw)
    models = tiny_models(family, seed=seed, vocab_size=len(left), pad_token_id=left.pad_token_id)
    with cpu_only():
        train_reward_model(
            models.reward_model,
            train,
            tokenizer=right,
            batch_size=32,
            max_length=LENGTH,
            seed=seed,
        )
        told = [
            [{**pair, "chosen": pair[name]} for pair in test] for name in ("chosen", "rejected")
        ]
        trained = [_in_training(models, answers, right) for answers in told]
        in_ppo = [_in_ppo(models, answers, left) for answers in told]
        moves, by_pads = _padded(models.reward_model, test, left)
    return {
        "trained": [scores.tolist() for scores in trained],
        "in_ppo": [scores.tolist() for scores in in_ppo],
        "spread": float(torch.cat(trained).std()),
        "moves": moves.tolist(),
        "by_pads": by_pads,
    }


def _in_training(models: Models, answers: Sequence[Mapping[str, str]], tokenizer: Any) -> Tensor:
    """Scores (B,) in rows from coati's data path."""
    rows = chosen_rows([dict(it) for it in answers], tokenizer=tokenizer, max_length=LENGTH)
    ids, mask = (torch.stack(parts) for parts in zip(*rows))
    return _scores(models.reward_model, ids, mask.long())


def _in_ppo(models: Models, answers: Sequence[Mapping[str, str]], tokenizer: Any) -> Tensor:
    """Scores (B,) in the experience that coati makes of the same prompts and answers."""
    prompts, said = (
        [tokenizer(it[name])["input_ids"] for it in answers] for name in ("prompt", "chosen")
    )
    end = tokenizer.eos_token_id
    rows = [prompt + answer for prompt, answer in zip(prompts, said)]
    actor = dictating_actor(rows, eos_token_id=end, vocab_size=len(tokenizer))
    given = models._replace(actor=actor, initial_model=actor)
    maker = experience_maker(given, tokenizer=tokenizer, kl_coef=0.0)
    ids, mask = pad_rows(prompts, pad_token_id=tokenizer.pad_token_id, side="left")
    truth = {} if has_strategies() else {"gt_answer": [None] * len(rows)}
    room = ids.size(1) + ANSWER + 1
    made = make_experience(maker, ids, mask, tokenizer=tokenizer, max_length=room, **truth)
    reward: Tensor = made.reward
    return reward


def _padded(
    model: Any, answers: Sequence[Mapping[str, str]], tokenizer: Any
) -> Tuple[Tensor, List[List[float]]]:
    """How far padding moves each row's reward, (B,), and rewards by the number of left pads."""
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    rows = [[*tokenizer(it["prompt"] + it["chosen"])["input_ids"], end] for it in answers[:PADDED]]
    alone = torch.cat([_scores(model, ids, torch.ones_like(ids)) for ids in map(_batch, rows)])
    width = max(map(len, rows)) + PADS
    moves = torch.stack(
        [
            (_scores(model, ids, mask) - alone).abs()
            for _, ids, mask in layouts(rows, pad_token_id=pad, width=width)
        ]
    )
    by_pads = []
    for row in rows[:_DRAWN]:
        line = []
        for pads in range(PADS + 1):
            ids, mask = pad_rows([row], pad_token_id=pad, side="left", width=len(row) + pads)
            line.append(float(_scores(model, ids, mask)))
        by_pads.append(line)
    return moves.amax(dim=0), by_pads


def _batch(row: Sequence[int]) -> Tensor:
    return torch.tensor([row], dtype=torch.long)


def _scores(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    with torch.no_grad():
        scores: Tensor = model(ids, attention_mask=mask)
    return scores
