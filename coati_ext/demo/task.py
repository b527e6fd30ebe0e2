"""A made-up task, whose right answers are known. One word is one token."""

from __future__ import annotations

import random
from typing import Any, Callable, Dict, List, Optional, Sequence

from torch import Tensor, nn

from coati_ext.testing.preferences import BAD, GOOD, PLAIN, TURN

PROMPT, ANSWER = 12, 24  # longest, in tokens
LENGTH = PROMPT + ANSWER
WRONG = 0.1  # the share of pairs that is the wrong way round


def prompt(draw: random.Random) -> str:
    """Between 2 and 11 plain words and the mark of a turn."""
    return " ".join([*(draw.choice(PLAIN) for _ in range(draw.randint(2, PROMPT - 1))), TURN])


def answer(draw: random.Random, special: float, good: float) -> List[str]:
    """Between 1 and 23 words, ``special`` of them good or bad and ``good`` of these good."""

    def word() -> str:
        if draw.random() >= special:
            return draw.choice(PLAIN)
        return draw.choice(GOOD if draw.random() < good else BAD)

    return [word() for _ in range(draw.randint(1, ANSWER - 1))]


def quality(words: Sequence[str]) -> float:
    """The share of good words less that of bad ones."""
    return sum((word in GOOD) - (word in BAD) for word in words) / len(words)


def pairs(
    count: int, draw: random.Random, score: Callable[[Sequence[str]], float] = quality
) -> List[Dict[str, str]]:
    """Records of upstream's reward data, in which the better answer is mostly the chosen one.

    Args:
        count: how many.
        draw: what they are drawn by.
        score: of an answer's words; the higher, the better.
    """
    found = []
    for _ in range(count):
        both = [answer(draw, draw.random(), draw.random()) for _ in range(2)]
        both.sort(key=score, reverse=draw.random() >= WRONG)
        chosen, rejected = (" " + " ".join(item) for item in both)
        found.append({"prompt": prompt(draw), "chosen": chosen, "rejected": rejected})
    return found


class Brevity(nn.Module):
    """A reward model that is a rule: 1 for no word, 0 for the longest answer.

    Args:
        turn: the token that ends a prompt.
        ordinary: the first id that is no special token.
    """

    def __init__(self, turn: int, ordinary: int) -> None:
        super().__init__()
        self._turn, self._ordinary = turn, ordinary

    def forward(
        self, ids: Optional[Tensor] = None, attention_mask: Optional[Tensor] = None, **given: Any
    ) -> Tensor:
        """Scores (B,) of rows (B, S), which generations name differently."""
        rows = ids if ids is not None else given.get("input_ids", given.get("sequences"))
        assert rows is not None
        answers = (rows == self._turn).long().cumsum(dim=1) > 0
        words = answers & (rows >= self._ordinary) & (rows != self._turn)
        return 1 - words.sum(dim=1) / ANSWER
