"""Read the preference pairs and load the tokenizer."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence, Tuple, TypeVar

from coati_ext._json import parse_json
from coati_ext.errors import InputError, in_a_line

T = TypeVar("T")
Record = Dict[str, Any]
FIELDS = ("prompt", "chosen", "rejected")
ANSWERS = ("chosen", "rejected")


@dataclass(frozen=True)
class Pair:
    """One preference pair, and its line in the data file."""

    line: int
    texts: Dict[str, str]
    """``chosen`` and ``rejected``, each preceded by the prompt."""


def read_pairs(file: Path) -> List[Pair]:
    """The preference pairs of a JSON Lines file. One that comes again counts once: it must not be
    fitted on and measured with.

    Raises:
        InputError: the file cannot be read, or lines are not pairs; the first of them are named.
    """
    pairs: Dict[Tuple[str, ...], Pair] = {}
    for pair in read_lines(file, _pair, "preference pairs", FIELDS):
        pairs.setdefault(tuple(pair.texts.values()), pair)
    return list(pairs.values())


def read_lines(
    file: Path, parse: Callable[[Record, int], T], what: str, texts: Sequence[str]
) -> List[T]:
    """What ``parse`` makes of the object on each line of a JSON Lines file, and of its number.

    Args:
        file: the file, whose empty lines do not count.
        parse: raises ``InputError`` for an object that is not what was expected.
        what: the lines are, for messages.
        texts: the names that were expected in each, for messages.

    Raises:
        InputError: the file cannot be read, or lines are not so; the first of them are named.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the {what.split()[-1]} in {file}: {error}") from error
    lines = [(n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
    found, problems = [], []
    for number, line in lines:
        try:
            found.append(parse(_record(line), number))
        except InputError as error:
            problems.append(f"  line {number}: {error}")
    if problems:
        more = f"\n  and {len(problems) - 5} more lines" if len(problems) > 5 else ""
        expected = ", ".join(f'"{name}": "..."' for name in texts)
        raise InputError(
            f"{len(problems)} of {len(lines)} lines of {file} are no {what}; expected "
            f"{{{expected}}} on each\n" + "\n".join(problems[:5]) + more
        )
    return found


def texts_of(record: Record, names: Sequence[str]) -> List[str]:
    """The texts of these names.

    Raises:
        InputError: one of them is missing or no text.
    """
    missing = [name for name in names if name not in record]
    if missing:
        found = ", ".join(map(str, record)) or "nothing"
        raise InputError(f"{' and '.join(missing)} missing (found {found})")
    for name in names:
        if not isinstance(record[name], str):
            raise InputError(f"{name} is {type(record[name]).__name__}, a text was expected")
    return [record[name] for name in names]


def _record(line: str) -> Record:
    try:
        record = parse_json(line)
    except ValueError as error:
        raise InputError(f"no JSON: {error}") from error
    if not isinstance(record, dict):
        raise InputError(f"an object was expected, not {type(record).__name__}")
    return record


def _pair(record: Record, number: int) -> Pair:
    prompt, *answers = texts_of(record, FIELDS)
    return Pair(number, {name: prompt + answer for name, answer in zip(ANSWERS, answers)})


def split(pairs: int, share: float, what: str = "pairs") -> Tuple[List[int], List[int]]:
    """The indices of the fitted and of the held-out pairs; deterministic.

    Raises:
        InputError: the share is none, or one of the two sets would be empty.
    """
    if not 0 < share < 1:  # nan is not, either
        raise InputError(
            f"--held-out {share:g}: a share of the {what} between 0 and 1 was expected"
        )
    count = round(pairs * share)
    if not 0 < count < pairs:
        raise InputError(
            f"holding out {share:g} of {pairs} {what} leaves {pairs - count} to fit on and {count} "
            f"to measure with: give more {what}, or another --held-out between 0 and 1"
        )
    held_out = set(random.Random(0).sample(range(pairs), count))
    return [pair for pair in range(pairs) if pair not in held_out], sorted(held_out)


def load_tokenizer(name: str, option: str) -> Any:
    """Load the tokenizer; if it has no pad token, EOS becomes the pad token.

    Args:
        name: a folder or a name of the hub.
        option: the option that gave it, for messages.

    Raises:
        InputError: there is no such tokenizer, or it has no EOS token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:  # of many kinds
        raise InputError(
            f"there is no tokenizer in {option} {name}: {in_a_line(error)}. Give the --tokenizer "
            "that the model was trained with"
        ) from error
    if tokenizer.eos_token is None:
        raise InputError(f"the tokenizer in {name} has no eos_token, which ends every answer")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # as G1's scripts do
    return tokenizer
