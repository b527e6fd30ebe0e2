"""An in-memory tokenizer in which one word is one token."""

from __future__ import annotations

from typing import Any, Optional, Sequence

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from coati_ext.testing.preferences import WORDS

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")  # ids 0 to 3


def tiny_tokenizer(
    *,
    pad: str = "pad",
    padding_side: str = "right",
    bos: bool = False,
    vocab: Optional[Sequence[str]] = None,
) -> Any:
    """Return a transformers fast tokenizer that splits at white space.

    Ids 0 to 3 are `<pad>`, `<bos>`, `<eos>` and unknown; words follow from 4 on, by default the
    60 words of :func:`preference_pairs`, which makes a vocabulary of 64.

    Args:
        pad: the pad token: "pad" for a separate one, or "eos" or "bos", which many scripts reuse.
        padding_side: "left" or "right".
        bos: begin every text with `<bos>`.
        vocab: other words than the default ones.

    Raises:
        ValueError: `pad` is not one of the three.
    """
    if pad not in ("pad", "eos", "bos"):
        raise ValueError(f"pad must be 'pad', 'eos' or 'bos', not {pad!r}")
    words = [*SPECIAL, *(WORDS if vocab is None else vocab)]
    tokenizer = Tokenizer(
        WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.add_special_tokens([*SPECIAL[:3]])  # recognised without surrounding spaces
    tokenizer.pre_tokenizer = WhitespaceSplit()
    if bos:
        tokenizer.post_processor = TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", SPECIAL.index("<bos>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=f"<{pad}>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side=padding_side,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
