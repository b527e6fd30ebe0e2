"""Synthetic preference pairs with the lengths of HH-RLHF and a learnable preference."""

from __future__ import annotations

import math
import random
from typing import Dict, List

GOOD = tuple(f"good{i}" for i in range(5))
BAD = tuple(f"bad{i}" for i in range(5))
PLAIN = tuple(f"word{i}" for i in range(49))
TURN = "Assistant:"  # ends every prompt
WORDS = (*GOOD, *BAD, *PLAIN, TURN)

_PROMPT_MEAN, _ANSWER_MEAN, _SIGMA, _LONGEST = 108, 72, 0.75, 254
_FLIPPED = 0.1


def preference_pairs(count: int, *, seed: int = 0) -> List[Dict[str, str]]:
    """Return that many records {"prompt", "chosen", "rejected"}; one word is one token.

    Lengths are lognormal: prompts have a mean of 108 words, answers of 72 (sigma 0.75, at most
    254), so that a row fits in 512 columns with BOS and EOS.  Answers begin with a space, so that
    prompt and answer can be concatenated.  Prompts consist of plain words.  The better answer has
    the higher share of good words among its good and bad words, independent of length.  It is the
    chosen one in 9 of 10 pairs, so this label noise caps the expected accuracy at 90 %.
    """
    draw = random.Random(seed)
    return [_pair(draw) for _ in range(count)]


def _pair(draw: random.Random) -> Dict[str, str]:
    prompt = [draw.choice(PLAIN) for _ in range(_length(draw, _PROMPT_MEAN) - 1)]
    answers = sorted((_answer(draw, draw.random()) for _ in range(2)), key=_quality, reverse=True)
    if draw.random() < _FLIPPED:
        answers.reverse()
    chosen, rejected = (" " + " ".join(answer) for answer in answers)
    return {"prompt": " ".join([*prompt, TURN]), "chosen": chosen, "rejected": rejected}


def _length(draw: random.Random, mean: float) -> int:
    words = draw.lognormvariate(math.log(mean) - _SIGMA**2 / 2, _SIGMA)
    return min(max(round(words), 2), _LONGEST)


def _answer(draw: random.Random, share: float) -> List[str]:
    """Half plain words; of the others, a share of `share` is good and the rest bad."""

    def word() -> str:
        if draw.random() < 0.5:
            return draw.choice(PLAIN)
        return draw.choice(GOOD if draw.random() < share else BAD)

    return [word() for _ in range(_length(draw, _ANSWER_MEAN))]


def _quality(answer: List[str]) -> float:
    good = sum(word in GOOD for word in answer)
    bad = sum(word in BAD for word in answer)
    return (good - bad) / max(good + bad, 1)
