"""Defects of checkpoints that ``doctor --live`` measures with the installed coati."""

from __future__ import annotations

from dataclasses import replace

from coati_ext import Defect
from coati_ext.checkpoints import stamp
from coati_ext.checkpoints.stamp import EOS, FRAME, MEAN_POOLED, REWARD_MODEL, Stamp
from coati_ext.errors import StampError

from .this_run import rows_seen, see

DEFECTS = (
    Defect(
        "lost weights",
        "provenance",
        "share of a reward model's weights lost when it was saved inside a DDP wrapper",
        ("G2",),
        f"{__name__}:measure_lost_weights",
    ),
    Defect(
        "other forms",
        "provenance",
        "reward models of another form (pooling, end token, tokenizer) loaded without a word",
        ("G1", "G2", "G3", "G4"),
        f"{__name__}:measure_other_forms",
    ),
)


def measure_other_forms() -> float:
    """How many of three reward models load whose pooling, EOS token or tokenizer differs."""
    from coati_ext.testing import tiny_reward_model, tiny_tokenizer

    see(tiny_tokenizer())
    patched = Stamp(
        kind=REWARD_MODEL,
        pooling=EOS,
        **FRAME,
        end_token=rows_seen.end_token,
        tokenizer=rows_seen.fingerprint,
        generation="G1",
        version="",
        digest="",
    )
    model = tiny_reward_model("gpt2")
    loaded = 0
    for other in (
        replace(patched, pooling=MEAN_POOLED),
        replace(patched, end_token=3),
        replace(patched, tokenizer="another"),
    ):
        weights = model.state_dict()
        stamp.put(weights, other)
        try:
            model.load_state_dict(weights)
        except StampError:
            continue
        loaded += 1
    return float(loaded)


def measure_lost_weights() -> float:
    """The share of the weights that are not loaded when G2's PPO script loads a reward model."""
    import torch

    from coati_ext.testing import tiny_reward_model

    saved = tiny_reward_model("gpt2").state_dict()
    model = tiny_reward_model("gpt2", seed=1)
    own = model.state_dict()
    differing = [key for key, value in own.items() if not torch.equal(value, saved[key])]
    model.load_state_dict({f"module.module.{k}": v for k, v in saved.items()}, strict=False)
    lost = [key for key in differing if not torch.equal(model.state_dict()[key], saved[key])]
    return len(lost) / len(differing)
