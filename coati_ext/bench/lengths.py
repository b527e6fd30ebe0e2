"""The rows that are measured: of the built-in distribution of lengths, or of a file.

Letters: B rows, S sequence columns.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

import numpy
import torch
from torch import Tensor, nn

from coati_ext.errors import InputError
from coati_ext.rollout.packing.forward import grouped_states
from coati_ext.rollout.packing.tree import unique_tokens

SEED = 1234
PROMPT, ANSWER, SIGMA = 108, 72, 0.75  # mean lengths of conversations, and their spread


class Vocabulary(NamedTuple):
    """The tokens that rows are made of."""

    size: int
    pad: int
    eos: int

    def sample(self, draw: numpy.random.Generator, size: int) -> List[int]:
        """Random tokens, neither pads nor ends."""
        found: List[int] = draw.integers(0, self.size, size).tolist()
        other = min({0, 1, 2} - {self.pad, self.eos})
        return [other if token in (self.pad, self.eos) else token for token in found]


@dataclass(frozen=True)
class Pair:
    """A prompt with two answers, each of which ends in the end token."""

    prompt: List[int]
    chosen: List[int]
    rejected: List[int]

    @property
    def rows(self) -> Tuple[List[int], List[int]]:
        """The prompt with either answer."""
        return self.prompt + self.chosen, self.prompt + self.rejected

    @property
    def answers(self) -> Tuple[List[int], List[int]]:
        """Both answers."""
        return self.chosen, self.rejected

    def cut(self, length: int, answer: int) -> Pair:
        """With rows of at most ``length`` tokens and answers of at most ``answer``.

        Prompts keep their last tokens, answers their first ones and the end token.
        """
        chosen, rejected = (
            it if len(it) <= answer else it[: answer - 1] + it[-1:] for it in self.answers
        )
        room = length - max(len(chosen), len(rejected))
        return Pair(self.prompt[max(0, len(self.prompt) - room) :], chosen, rejected)


def drawn(pairs: int, length: int, words: Vocabulary, scale: float = 1.0) -> List[Pair]:
    """Random pairs of the lengths of real conversations: log-normal, cut at half of ``length``.

    Args:
        pairs: how many.
        length: S.
        words: what they are made of.
        scale: multiplies the lengths.
    """
    draw = numpy.random.default_rng(SEED)

    def sizes(mean: float) -> List[int]:
        middle = numpy.log(mean * scale) - SIGMA**2 / 2
        found = draw.lognormal(middle, SIGMA, pairs).clip(2, length // 2)
        return [int(size) for size in found]

    return made([*zip(sizes(PROMPT), sizes(ANSWER), sizes(ANSWER))], words)


def made(sizes: Sequence[Tuple[int, int, int]], words: Vocabulary) -> List[Pair]:
    """Random pairs of these lengths of prompt, chosen and rejected answer."""
    draw = numpy.random.default_rng(SEED)

    def answer(size: int) -> List[int]:
        return [*words.sample(draw, size - 1), words.eos]

    return [
        Pair(words.sample(draw, prompt), answer(chosen), answer(rejected))
        for prompt, chosen, rejected in sizes
    ]


def read(file: Path, tokenizer: Any, words: Vocabulary) -> List[Pair]:
    """The pairs of a JSONL file.

    A line has prompt, chosen and rejected as lengths, texts or lists of messages (prompt may be
    called context), or what coati's preparation of preference data leaves: ``chosen_input_ids``,
    ``chosen_loss_mask`` and so on.

    Args:
        file: its path.
        tokenizer: for texts; none if there is none.
        words: what rows are made of whose lengths are given.

    Raises:
        InputError: the file cannot be read; the message names the line.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {file}: {error}") from None
    pairs = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                pairs.append(_pair(json.loads(line), tokenizer, words))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                reason = f"{type(error).__name__}: {error}"
                raise InputError(
                    f"{file}, line {number} is no preference pair: {reason}: expected prompt, "
                    "chosen and rejected, as texts or as numbers of tokens"
                ) from None
    if not pairs:
        raise InputError(f"{file} has no lines: expected a preference pair in each")
    return pairs


def counts(rows: Sequence[Sequence[int]], length: int) -> Dict[str, int]:
    """The tokens of one batch: with pads to ``length``, in groups of like length, real, unique."""
    ids, mask = padded(rows, length, 0, "left")
    lines, real = ids.numpy(), mask.bool().numpy()
    counter = _Counter()
    grouped_states(counter, ids, mask.bool())
    return {
        "padded": ids.numel(),
        "groups": counter.tokens,
        "real": int(real.sum()),
        "unique": unique_tokens(lines, real),
    }


def padded(
    rows: Sequence[Sequence[int]], length: int, pad: int, side: str
) -> Tuple[Tensor, Tensor]:
    """Ids and mask, both (B, S) int64, with all pads on one side."""
    ids = torch.full((len(rows), length), pad)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        start = length - len(row) if side == "left" else 0
        ids[index, start : start + len(row)] = torch.tensor(row)
        mask[index, start : start + len(row)] = 1
    return ids, mask


class _Counter(nn.Module):
    """Stands in for a backbone, and counts the tokens that it is asked for."""

    tokens = 0

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Dict[str, Tensor]:
        self.tokens += input_ids.numel()
        return {"last_hidden_state": input_ids.new_zeros(*input_ids.shape, 1).float()}


def _pair(record: Any, tokenizer: Any, words: Vocabulary) -> Pair:
    if "chosen_input_ids" in record:
        split = [_split(record, name) for name in ("chosen", "rejected")]
        return Pair(split[0][0], split[0][1], split[1][1])
    parts = [record.get("prompt", record.get("context")), record["chosen"], record["rejected"]]
    if all(isinstance(item, int) and item > 0 for item in parts):
        return made([(parts[0], parts[1], parts[2])], words)[0]
    if tokenizer is None:
        raise ValueError("texts need the tokenizer of a --model folder")
    prompt, chosen, rejected = (list(tokenizer(_text(item))["input_ids"]) for item in parts)
    return Pair(prompt, [*chosen, tokenizer.eos_token_id], [*rejected, tokenizer.eos_token_id])


def _split(record: Any, name: str) -> Tuple[List[int], List[int]]:
    """Prompt and answer, which begins where the loss does."""
    ids, mask = list(record[f"{name}_input_ids"]), list(record[f"{name}_loss_mask"])
    start = mask.index(1) if 1 in mask else len(ids)
    return ids[:start], ids[start:]


def _text(item: Any) -> str:
    if isinstance(item, str):
        return item
    messages = [item] if isinstance(item, dict) else item
    return "\n".join(message["content"] for message in messages)
