"""Preference pairs that look like HH-RLHF in length and have a preference to be learnt."""

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

    Prompts are lognormal with mean 108 words and answers with mean 72 (sigma 0.75, at most 254),
    so that a pair fits in 512 columns with both special tokens.  Both answers follow the same
    prompt, and begin with a space, so that texts can be joined.  Prompts are plain words.  The
    better answer is the one with more good words among its good and bad ones, whatever its
    length, and it is the chosen one in nine pairs of ten: no model can expect more than 90 %.
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
    """Half plain words, and among the others `share` good ones."""

    def word() -> str:
        if draw.random() < 0.5:
            return draw.choice(PLAIN)
        return draw.choice(GOOD if draw.random() < share else BAD)

    return [word() for _ in range(_length(draw, _ANSWER_MEAN))]


def _quality(answer: List[str]) -> float:
    good = sum(word in GOOD for word in answer)
    bad = sum(word in BAD for word in answer)
    return (good - bad) / max(good + bad, 1)
