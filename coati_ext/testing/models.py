"""Tiny models with random weights: no download, milliseconds on a CPU."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Dict, NamedTuple, Tuple

import torch
import transformers
from torch import nn

from coati_ext.errors import nearest


class _Family(NamedTuple):
    config: str
    sizes: str  # key of _SIZES: the config's names for its sizes
    extra: Dict[str, Any]


# Larger than the usual 0.02, so that context and positions change a reward by far more than any
# tolerance, and small enough that a few dozen training steps still generalise.
_SPREAD = 0.1

_SIZES = {
    "gpt2": {"width": "n_embd", "layers": "n_layer", "heads": "n_head", "columns": "n_positions"},
    "bloom": {"width": "hidden_size", "layers": "n_layer", "heads": "n_head"},
    "usual": {
        "width": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "columns": "max_position_embeddings",
    },
}

_FAMILIES = {
    "gpt2": _Family("GPT2Config", "gpt2", {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}),
    "opt": _Family("OPTConfig", "usual", {"dropout": 0, "init_std": _SPREAD}),
    "bloom": _Family("BloomConfig", "bloom", {"hidden_dropout": 0, "attention_dropout": 0}),
    "llama": _Family("LlamaConfig", "usual", {}),
    "mistral": _Family("MistralConfig", "usual", {}),
    "qwen2": _Family("Qwen2Config", "usual", {}),
    "gpt_neox": _Family("GPTNeoXConfig", "usual", {"rotary_pct": 0.5}),
}

_WRAPPERS = {  # G1 and G2 have a class of their own for four of the families
    "gpt2": ("coati.models.gpt", "GPTRM"),
    "opt": ("coati.models.opt", "OPTRM"),
    "bloom": ("coati.models.bloom", "BLOOMRM"),
    "llama": ("coati.models.llama", "LlamaRM"),
}


def families() -> Tuple[str, ...]:
    """Names of the model families that the installed transformers has."""
    return tuple(name for name, it in _FAMILIES.items() if hasattr(transformers, it.config))


def tiny_config(
    family: str,
    *,
    vocab_size: int = 64,
    hidden_size: int = 32,
    layers: int = 2,
    heads: int = 4,
    max_positions: int = 512,
    pad_token_id: int = 0,
) -> Any:
    """Return a small transformers config of that family, without dropout.

    Tokens 1 and 2 are BOS and EOS, as in :func:`tiny_tokenizer`.

    Raises:
        ValueError: the installed transformers has no such family.
    """
    if family not in families():
        raise ValueError(
            f"unknown model family {family!r}, only {', '.join(families())}"
            f"{nearest(family, families())}"
        )
    it = _FAMILIES[family]
    sizes = {
        "width": hidden_size,
        "layers": layers,
        "heads": heads,
        "columns": max_positions,
    }
    options = {name: sizes[size] for size, name in _SIZES[it.sizes].items()}
    if family == "opt":
        options.update(ffn_dim=4 * hidden_size, word_embed_proj_dim=hidden_size)
    elif it.sizes == "usual":
        options.update(intermediate_size=2 * hidden_size)
    if family in ("mistral", "qwen2"):
        options.update(num_key_value_heads=max(1, heads // 2))
    return getattr(transformers, it.config)(
        vocab_size=vocab_size,
        pad_token_id=pad_token_id,
        bos_token_id=1,
        eos_token_id=2,
        **{"initializer_range": _SPREAD, **options, **it.extra},
    )


def tiny_reward_model(family: str = "gpt2", *, seed: int = 0, **config_options: Any) -> nn.Module:
    """Return a random reward model of the coati that is importable now, in eval mode.

    Its `forward(ids (B, S), attention_mask (B, S))` returns rewards (B,).  The value head is scaled
    so that the rewards of random rows at their last token have a standard deviation of about 1.
    The weights depend only on `family`, `seed` and `config_options` (see :func:`tiny_config`), not
    on patches.  The global random state is restored.

    Raises:
        ValueError: the installed transformers has no such family.
        ImportError: no coati can be imported.
    """
    config = tiny_config(family, **config_options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = _reward_model(family, config)
        ids = torch.randint(3, config.vocab_size, (64, 12))
        evaluated: nn.Module = model.eval()
        with torch.no_grad():
            output = model.model(ids, attention_mask=torch.ones_like(ids))
            last = output["last_hidden_state"][:, -1]
            model.value_head.weight /= model.value_head(last).std()
            model.value_head.bias -= model.value_head(last).mean()
    return evaluated


def _reward_model(family: str, config: Any) -> Any:
    base = import_module("coati.models.base")
    if not hasattr(base, "RewardModel"):  # G3 and G4 take any config
        return import_module("coati.models").RewardModel(config=config)
    if family in _WRAPPERS:
        module, name = _WRAPPERS[family]
        return getattr(import_module(module), name)(config=config)
    backbone = transformers.AutoModel.from_config(config)
    head = nn.Linear(config.hidden_size, 1)
    return base.RewardModel(model=backbone, value_head=head)
