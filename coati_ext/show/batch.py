"""What is shown: prompts and answers, from texts, ids, or a captured Experience."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import torch

from coati_ext.errors import InputError, nearest
from coati_ext.testing.text import SPECIAL, tiny_tokenizer

Record = Mapping[str, Any]
Ids = List[int]
ROLLOUT, PAIRS = "rollout", "pairs"
ANSWERS = {ROLLOUT: ("answer",), PAIRS: ("chosen", "rejected")}
EXAMPLES: Dict[str, List[Record]] = {
    ROLLOUT: [
        {"prompt": "word1 word2 word3 word4 word5 Assistant:", "answer": "good1 word7 good2"},
        {"prompt": "word6 word7 Assistant:", "answer": "good3 word1 word2 bad4 word5"},
        {"prompt": "word8 word9 word3 Assistant:", "answer": "good4"},
    ],
    PAIRS: [
        {
            "prompt": "word1 word2 word3 word4 word5 Assistant:",
            "chosen": "good1 word7 good2",
            "rejected": "bad1 word7",
        },
        {
            "prompt": "word6 word7 Assistant:",
            "chosen": "good3",
            "rejected": "bad4 word1 word2 bad4 word5",
        },
    ],
}


@dataclass(frozen=True)
class Vocabulary:
    """What the ids of a batch mean."""

    pad: int = 0
    eos: int = 2
    bos: Optional[int] = None
    tokenizer: Any = None
    texts: Mapping[int, str] = field(default_factory=dict)
    side: str = "right"
    """Where the tokenizer pads, left to itself."""

    @classmethod
    def of(cls, tokenizer: Any) -> Vocabulary:
        """That of a transformers tokenizer; without a pad token EOS pads, as in coati's scripts."""
        eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
        if eos is None:
            raise InputError("the tokenizer has no eos_token, which coati ends every answer with")
        pad = eos if pad is None else pad
        return cls(pad, eos, tokenizer.bos_token_id, tokenizer, side=tokenizer.padding_side)

    def text(self, token: int) -> str:
        """A token as a reader knows it."""
        known = self.texts.get(token, str(token))
        if self.tokenizer is not None:
            known = str(self.tokenizer.convert_ids_to_tokens(token))
        return known.lstrip("\u0120\u2581")  # how BPE and SentencePiece write a space

    def ids(self, text: Any, whole: bool) -> Ids:
        """The ids of a text, with what begins it where it is whole; ids stay as they are."""
        if not isinstance(text, str):
            return [int(token) for token in text]
        if self.tokenizer is None:
            raise InputError(f"no tokenizer for the text {text[:40]!r}: pass --tokenizer FOLDER")
        ids = [*map(int, self.tokenizer(text, add_special_tokens=whole)["input_ids"])]
        return ids[:-1] if ids and ids[-1] == self.eos else ids


@dataclass(frozen=True)
class Row:
    """A prompt with one answer, which ends in EOS unless it was cut off."""

    name: str
    prompt: Ids
    answer: Ids

    @property
    def ids(self) -> Ids:
        """All of its real tokens."""
        return [*self.prompt, *self.answer]


@dataclass(frozen=True)
class Batch:
    """Rows of one kind; of pairs the chosen rows come first, as in coati."""

    kind: str
    rows: Tuple[Row, ...]
    words: Vocabulary

    def local(self, padding_side: str) -> Tuple[Any, List[Row]]:
        """The rows in ids of a small tokenizer, in which every token but the special ones is new.

        Upstream only compares ids with the special ones, so the layout is that of the real ids;
        and each cell of it tells the place in the row that it is from.
        """
        special = {self.words.bos: 1, self.words.eos: 2}
        pad = special.get(self.words.pad, 0)
        special[self.words.pad] = pad
        count = len(SPECIAL)
        rows = []
        for row in self.rows:
            places = range(count, count + len(row.ids))
            ids = [special.get(token, place) for token, place in zip(row.ids, places)]
            count += len(ids)
            rows.append(Row(row.name, ids[: len(row.prompt)], ids[len(row.prompt) :]))
        names = [f"token{number}" for number in range(len(SPECIAL), count)]
        kind = ("pad", "bos", "eos")[pad]
        return tiny_tokenizer(pad=kind, padding_side=padding_side, vocab=names), rows


def example(kind: str, pad: str) -> Batch:
    """A batch of made-up words."""
    return _batch(kind, EXAMPLES[kind], Vocabulary.of(tiny_tokenizer(pad=pad)))


def read(file: Path, words: Vocabulary, most: int) -> Batch:
    """The first records of a file.

    ``.json`` and ``.jsonl`` hold records, each with "prompt" and "answer", or "prompt", "chosen"
    and "rejected", as texts or ids; ``.pt`` holds a list of them, or what
    :mod:`coati_ext.show.capture` has written, which mostly knows its own vocabulary.

    Raises:
        InputError: the file cannot be read, or a record is of another form.
    """
    held = _load(file)
    if isinstance(held, Mapping) and "sequences" in held:
        return _captured(held, words, most)
    records = [held] if isinstance(held, Mapping) else held
    if not isinstance(records, list) or not records:
        raise InputError(f"{file} holds no records: expected a list of them")
    first = records[0]
    keys = list(first) if isinstance(first, Mapping) else []
    for kind, answers in ANSWERS.items():
        if {"prompt", *answers} <= {*keys}:
            try:
                return _batch(kind, records[:most], words)
            except (KeyError, TypeError, ValueError) as error:
                told = f"{type(error).__name__}: {error}"
                raise InputError(f"{file}: a record is unlike the first: {told}") from None
    known = [key for key in keys if key not in ("prompt", "answer", "chosen", "rejected")]
    hint = nearest(known[0], ["prompt", "answer", "chosen", "rejected"]) if known else ""
    raise InputError(
        f"{file}: the first record has {', '.join(keys) or 'no keys'}{hint}: expected prompt and "
        "answer, or prompt, chosen and rejected"
    )


def _load(file: Path) -> Any:
    readers: Dict[str, Callable[[], Any]] = {
        ".json": lambda: json.loads(file.read_text(encoding="utf-8")),
        ".jsonl": lambda: [json.loads(line) for line in file.open(encoding="utf-8")],
        ".pt": lambda: torch.load(str(file), map_location="cpu", weights_only=True),
    }
    if file.suffix not in readers:
        raise InputError(f"{file} ends in {file.suffix!r}: expected {', '.join(readers)}")
    try:
        return readers[file.suffix]()
    except Exception as error:  # pickle raises anything
        reason = (str(error).splitlines() or ["no message"])[0]
        raise InputError(f"{file} cannot be read: {type(error).__name__}: {reason}") from None


def _batch(kind: str, records: Sequence[Record], words: Vocabulary) -> Batch:
    rows = []
    for name in ANSWERS[kind]:
        for number, record in enumerate(records):
            answer = words.ids(record[name], whole=False)
            ended = answer[-1:] == [words.eos]
            told = f"{number}" if kind == ROLLOUT else f"{number} {name}"
            prompt = words.ids(record["prompt"], whole=True)
            rows.append(Row(told, prompt, answer if ended else [*answer, words.eos]))
    return Batch(kind, tuple(rows), words)


def _captured(held: Mapping[str, Any], words: Vocabulary, most: int) -> Batch:
    sequences, real, actions = (
        held[name][:most] for name in ("sequences", "attention_mask", "action_mask")
    )
    width = sequences.size(1) - actions.size(1)
    rows = []
    for number, (ids, mask, taken) in enumerate(zip(sequences, real.bool(), actions.bool())):
        prompt, answer = ids[:width][mask[:width]], ids[width:][taken]
        rows.append(Row(str(number), prompt.tolist(), answer.tolist()))
    if "texts" in held:
        words = Vocabulary(held["pad_token_id"], held["eos_token_id"], texts=held["texts"])
    return Batch(ROLLOUT, tuple(rows), words)
