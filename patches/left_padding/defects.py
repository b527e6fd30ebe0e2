"""Defects of tokenized rows that ``doctor --live`` measures with the installed coati."""

from __future__ import annotations

from typing import Any, List, Sequence, Tuple

from coati_ext import Defect


def _defect(name: str, summary: str, generations: Tuple[str, ...], measure: str) -> Defect:
    return Defect(name, "left_padding", summary, generations, f"{__name__}:{measure}")


DEFECTS = (
    _defect(
        "end token lost",
        "share of over-long preference rows that do not end in the end token",
        ("G1", "G2", "G3", "G4"),
        "measure_lost_ends",
    ),
    _defect(
        "right-padded rows",
        "share of short preference rows padded after their end, tokenizer side right",
        ("G1", "G2", "G3", "G4"),
        "measure_right_padding",
    ),
    _defect(
        "prompt tokens masked",
        "real tokens hidden in a prompt with two inner eos, pad == eos",
        ("G3", "G4"),
        "measure_hidden_prompt_tokens",
    ),
    _defect(
        "prompt cut at its end",
        "over-long conversations that lose their last token, the assistant's header",
        ("G4",),
        "measure_cut_prompts",
    ),
)


def _rows_of(lengths: Sequence[int]) -> List[Any]:
    """The rows, 8 columns wide, that the installed coati makes of answers of these lengths."""
    from coati_ext.testing import chosen_rows, tiny_tokenizer

    tokenizer = tiny_tokenizer(padding_side="right")
    word = tokenizer.convert_ids_to_tokens(5)
    answers = [f"{word} " * (length - 1) for length in lengths]
    pairs = [{"prompt": "", "chosen": answer, "rejected": answer} for answer in answers]
    return chosen_rows(pairs, tokenizer=tokenizer, max_length=8)


def measure_lost_ends() -> float:
    """The share of over-long rows whose last real token is not EOS."""
    from coati_ext.testing import tiny_tokenizer

    eos = tiny_tokenizer().eos_token_id
    rows = _rows_of([9, 12, 30])
    return float(sum(int(ids[mask][-1]) != eos for ids, mask in rows) / len(rows))


def measure_right_padding() -> float:
    """The share of short rows with pads on the right."""
    rows = _rows_of([3, 5, 6])
    return sum(not bool(mask[-1]) for _, mask in rows) / len(rows)


def measure_hidden_prompt_tokens() -> float:
    """The number of real tokens of one prompt that are masked if pad == EOS."""
    from coati.dataset import DataCollatorForPromptDataset

    from coati_ext.testing import tiny_tokenizer

    tokenizer = tiny_tokenizer(pad="eos", padding_side="left")
    eos = tokenizer.eos_token_id
    prompt = [5, 6, eos, 7, eos, 8]
    batch = DataCollatorForPromptDataset(tokenizer, max_length=8)([{"input_ids": prompt}])
    return float(len(prompt) - int(batch["attention_mask"].sum()))


def measure_cut_prompts() -> float:
    """1 if the last token of an over-long conversation is lost."""
    from inspect import signature

    from coati.dataset.loader import apply_chat_template_and_mask

    from coati_ext.testing import tiny_tokenizer

    tokenizer = tiny_tokenizer(padding_side="left")
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['content'] }} {% endfor %}word9"
    )
    message = {"role": "user", "content": "word1 word2 word3 word4"}
    # Before HEAD it takes a list of messages and no system prompt.
    rl = "system_prompt" in signature(apply_chat_template_and_mask).parameters
    chat = {"messages": message, "gt_answer": "word5"} if rl else [message]
    row = apply_chat_template_and_mask(tokenizer, chat, max_length=4)
    last = tokenizer.convert_tokens_to_ids("word9")
    return float(int(row["input_ids"][-1]) != last)
