"""``apply_chat_template_and_mask``, which tokenizes the prompts of G4."""

from __future__ import annotations

from inspect import signature
from typing import Any, Callable, Dict


def keep_the_end(original: Callable[..., Dict[str, Any]], *args: Any, **kwargs: Any) -> Any:
    """Tokenize a prompt into tensors (S,); one that is too long loses its head, but for BOS.

    Upstream cuts its end off, where the question and the assistant's header are.
    """
    call = signature(original).bind(*args, **kwargs)
    call.apply_defaults()
    given = call.arguments
    cut, given["truncation"] = given["truncation"], False
    rows = original(*call.args, **call.kwargs)
    length, width = len(rows["input_ids"]), given["max_length"]
    if not cut or width is None or length <= width:
        return rows
    bos = given["tokenizer"].bos_token_id
    head = 1 if int(rows["input_ids"][0]) == bos and width > 1 else 0
    kept = [*range(head), *range(length - (width - head), length)]
    per_token = ("input_ids", "attention_mask", "labels")
    return {**rows, **{name: rows[name][kept] for name in per_token}}
