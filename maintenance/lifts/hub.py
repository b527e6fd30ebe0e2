"""Tiny tokenizers and models under the names that upstream's tests and scripts ask the hub for.

``python hub.py FOLDER`` fills the folder; see ``sitecustomize.HUB``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Dict

TOKENIZERS = {
    "gpt2": "gpt2",
    "opt": "facebook/opt-350m",
    "bloom": "bigscience/bloom-560m",
    "llama": "hf-internal-testing/llama-tokenizer",
}


def tokenizer_of(family: str, folder: Path) -> Any:
    """A tokenizer of the family's own class, in which a byte or a letter is a token."""
    import transformers
    from transformers.models.gpt2.tokenization_gpt2 import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    if family == "llama":
        return transformers.LlamaTokenizer(_pieces(folder / "tokenizer.model"))
    special = ["<|endoftext|>"] if family == "gpt2" else ["<s>", "<pad>", "</s>", "<unk>"]
    vocabulary = {letter: number for number, letter in enumerate([*special, *letters])}
    if family == "bloom":
        return transformers.BloomTokenizerFast(tokenizer_object=_byte_level(vocabulary))
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    files = [str(folder / "vocab.json"), str(folder / "merges.txt")]
    own = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
    options: Dict[str, Any] = {**own, "add_bos_token": True} if family == "opt" else {}
    return transformers.GPT2Tokenizer(*files, **options)


def _pieces(file: Path) -> str:
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox jumps over the lazy dog"] * 20),
        model_prefix=str(file.with_suffix("")),
        model_type="bpe",
        vocab_size=300,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return str(file)


def _byte_level(vocabulary: Dict[str, int]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def main(hub: Path) -> None:
    """A folder for each family: the tokenizer, and a model of two layers beside it."""
    import torch
    import transformers

    from coati_ext.testing import tiny_config

    for family, name in TOKENIZERS.items():
        folder = hub / name.replace("/", "--")
        folder.mkdir(parents=True)
        tokenizer = tokenizer_of(family, folder)
        tokenizer.save_pretrained(str(folder))
        config = tiny_config(family, vocab_size=len(tokenizer), max_positions=1024)
        config.bos_token_id = tokenizer.bos_token_id
        config.eos_token_id = config.pad_token_id = tokenizer.eos_token_id
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
        model.save_pretrained(str(folder))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
