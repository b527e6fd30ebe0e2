"""Defects of rewards that ``doctor --live`` measures with the installed coati."""

from __future__ import annotations

from typing import Any, Callable, Tuple

from coati_ext import Defect

_ALL = ("G1", "G2", "G3", "G4")


def _defect(name: str, summary: str, generations: Tuple[str, ...], measure: str) -> Defect:
    return Defect(name, "eos_pooling", summary, generations, f"{__name__}:{measure}")


DEFECTS = (
    *(
        _defect(
            f"padding, {family}",
            "largest change of a reward by left, right, both-side or inner padding",
            generations,
            f"measure_{family}",
        )
        # OPT and BLOOM derive positions from the mask, so only G1's pooling is wrong for them.
        for family, generations in (
            ("gpt2", _ALL),
            ("opt", ("G1",)),
            ("bloom", ("G1",)),
            ("llama", _ALL),
        )
    ),
    _defect(
        "no mask",
        "change of an unpadded row's reward when attention_mask is left out",
        ("G2", "G3", "G4"),
        "measure_no_mask",
    ),
    _defect(
        "float mask",
        "change of a reward when attention_mask is of floats",
        ("G2", "G3", "G4"),
        "measure_float_mask",
    ),
    _defect(
        "bf16 backbone",
        "rewards lost, of three, with a bf16 backbone under an fp32 head",
        ("G1", "G2"),
        "measure_bf16",
    ),
)


def _rewards(model: Any, ids: Any, mask: Any) -> Any:
    import torch

    with torch.no_grad():
        return model(ids, attention_mask=mask)


def _padding_error(family: str) -> float:
    import torch

    from coati_ext.testing import layouts, tiny_reward_model

    model = tiny_reward_model(family)
    rows = [[1, 9, 8, 7, 12, 2], [1, 5, 2], [1, 14, 6, 33, 21, 40, 17, 30, 9, 2]]
    alone = torch.cat([_rewards(model, *_alone(row)) for row in rows])
    padded = [_rewards(model, ids, mask) for _, ids, mask in layouts(rows, pad_token_id=0)]
    return max(float((rewards - alone).abs().max()) for rewards in padded)


def _alone(row: Any) -> Any:
    import torch

    ids = torch.tensor([row])
    return ids, torch.ones_like(ids)


def measure_gpt2() -> float:
    """The largest change of a reward by padding, for a tiny GPT-2 reward model."""
    return _padding_error("gpt2")


def measure_opt() -> float:
    """The largest change of a reward by padding, for a tiny OPT reward model."""
    return _padding_error("opt")


def measure_bloom() -> float:
    """The largest change of a reward by padding, for a tiny BLOOM reward model."""
    return _padding_error("bloom")


def measure_llama() -> float:
    """The largest change of a reward by padding, for a tiny LLaMA reward model."""
    return _padding_error("llama")


def _mask_error(convert: Callable[[Any], Any]) -> float:
    from coati_ext.testing import tiny_reward_model

    model = tiny_reward_model("gpt2")
    ids, mask = _alone([1, 9, 8, 7, 12, 2])
    return float((_rewards(model, ids, convert(mask)) - _rewards(model, ids, mask)).abs().max())


def measure_no_mask() -> float:
    """The change of a reward when the mask is left out."""
    return _mask_error(lambda mask: None)


def measure_float_mask() -> float:
    """The change of a reward when the mask is of a floating-point dtype."""
    return _mask_error(lambda mask: mask.float())


def measure_bf16() -> float:
    """The number of non-finite rewards, of three, with a bf16 backbone and an fp32 value head."""
    import torch

    from coati_ext.testing import tiny_reward_model

    model = tiny_reward_model("llama")
    model.model.bfloat16()
    ids = torch.tensor([[1, 9, 2], [1, 8, 2], [1, 7, 2]])
    return float((~_rewards(model, ids, torch.ones_like(ids)).isfinite()).sum())
