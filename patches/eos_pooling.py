"""Score a row by V at its last real token (EOS), whatever the padding and the batch.

Upstream's first generation averages the value head over every column but the last, pads included;
the later three read the last attended column, but give the backbone no position ids, so GPT-2 is
wrong under left padding and every rotary model under interior padding. See ColossalAI #4475, #4471.

Letters: B rows, S sequence columns, H hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Optional

from coati_ext import Defect, Patch, Site, choice, hookimpl, option, tensors
from coati_ext.rollout.models import frame_inputs, head_dtype

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Options:
    """``[eos_pooling]``."""

    pooling: str = option(
        "eos",
        "what the value head scores: eos (the hidden state at the last real token), masked_mean "
        "(the mean over the real tokens) or the pool_reward of a plugin, by its name",
        chooses="pool_reward",
    )


def forward_sequences(
    self: Any, sequences: Tensor, attention_mask: Optional[Tensor] = None
) -> Tensor:
    """Rewards (B,) of ids (B, S), for G1 and G2. The mask may be absent, which G2 forbids."""
    return _score(self, sequences, attention_mask)


def forward_input_ids(
    self: Any, input_ids: Tensor, attention_mask: Optional[Tensor] = None
) -> Tensor:
    """Rewards (B,) of ids (B, S), for G3."""
    return _score(self, input_ids, attention_mask)


def forward_with_extras(
    self: Any, input_ids: Tensor, attention_mask: Optional[Tensor] = None, **kwargs: Any
) -> Tensor:
    """Rewards (B,) of ids (B, S), for G4, whose maker tells rule-based reward models more."""
    return _score(self, input_ids, attention_mask)


def _score(self: Any, input_ids: Tensor, attention_mask: Optional[Tensor]) -> Tensor:
    mask = tensors.token_mask(input_ids, attention_mask)
    input_ids, mask = tensors.left_frame(input_ids, mask)
    hidden = self.model(input_ids, **frame_inputs(self.model, mask))["last_hidden_state"]
    positions = input_ids.new_full((input_ids.size(0),), input_ids.size(1) - 1)
    pooled = choice("pool_reward")(hidden, mask, positions, self)
    # A bf16 backbone may carry an fp32 head.
    values: Tensor = self.value_head(pooled.to(head_dtype(self.value_head, pooled.dtype)))
    return values.squeeze(-1)


@hookimpl(specname="pool_reward")
def eos(hidden: Tensor, positions: Tensor) -> Tensor:
    """The hidden state at the last real token: (B, H) from (B, S, H)."""
    index = positions.view(-1, 1, 1).expand(-1, 1, hidden.size(-1))
    return hidden.gather(1, index).squeeze(1)


@hookimpl(specname="pool_reward")
def masked_mean(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """The mean hidden state of the real tokens: (B, H) from (B, S, H), summed in fp32 or wider."""
    real = attention_mask.unsqueeze(-1)
    wide = hidden if hidden.element_size() >= 4 else hidden.float()
    return (wide.masked_fill(~real, 0).sum(dim=1) / real.sum(dim=1)).to(hidden.dtype)


@hookimpl
def register_options(register: Callable[[str, type], None]) -> None:
    """Declare ``[eos_pooling]``."""
    register("eos_pooling", Options)


@hookimpl
def register_patches(register: Callable[[Patch], None]) -> None:
    """Declare the patch."""
    register(
        Patch(
            name="eos_pooling",
            summary="the reward of a row is V at its last real token, whatever the padding",
            default=True,
            changes=(
                "Rewards of the same weights change in G1 (EOS instead of a mean over all columns) "
                "and, wherever rows are padded on the left or inside, in G2 to G4. A right-padded "
                "row keeps its reward in G2 to G4."
            ),
            reference="ColossalAI #4475, #4471, #4125",
            sites=(
                Site(
                    "coati.models.base.reward_model:RewardModel.forward",
                    "coati_ext.patches.eos_pooling:forward_sequences",
                    generations=("G1",),
                    needs=("self.model", "self.value_head"),
                    fits={
                        "v0.2.8 .. v0.3.2": "792cf8e2-338add2b-27d8923f-642716f6-7bb3c584-99dbf83d",
                        "stand-in": "792cf8e2-8ec7e5ea-08204c75",
                    },
                ),
                Site(
                    "coati.models.base.reward_model:RewardModel.forward",
                    "coati_ext.patches.eos_pooling:forward_sequences",
                    generations=("G2",),
                    needs=("self.model", "self.value_head"),
                    fits={
                        "v0.3.3 .. v0.3.6": (
                            "9914a338-338add2b-27d8923f-c236a867-dbecccff-1ca07dda-244bb21d"
                        ),
                        "stand-in": "9914a338-8ec7e5ea-f76d2081",
                    },
                ),
                Site(
                    "coati.models.reward_model:RewardModel.forward",
                    "coati_ext.patches.eos_pooling:forward_input_ids",
                    generations=("G3",),
                    needs=("self.model", "self.value_head"),
                    fits={
                        "v0.3.7 .. v0.4.7": (
                            "a134a006-caac0bfd-27d8923f-55203fe6-940418f7-2bd7c52c-244bb21d"
                        ),
                        "stand-in": "a134a006-86711ed2-0ebf1ff5-bb7c2c49-12db22b0-e679537e",
                    },
                ),
                Site(
                    "coati.models.reward_model:RewardModel.forward",
                    "coati_ext.patches.eos_pooling:forward_with_extras",
                    generations=("G4",),
                    needs=("self.model", "self.value_head"),
                    fits={
                        "v0.4.8 .. HEAD": (
                            "28e70124-caac0bfd-27d8923f-55203fe6-940418f7-2bd7c52c-244bb21d"
                        ),
                        "stand-in": "28e70124-86711ed2-0ebf1ff5-bb7c2c49-12db22b0-e679537e",
                    },
                ),
            ),
        )
    )


@hookimpl
def register_defects(register: Callable[[Defect], None]) -> None:
    """Declare what ``doctor --live`` measures."""
    here = "coati_ext.patches.eos_pooling:"
    everywhere = ("G1", "G2", "G3", "G4")
    # OPT and BLOOM derive their positions from the mask, so only G1's pooling moves them.
    for family, generations in (
        ("gpt2", everywhere),
        ("opt", ("G1",)),
        ("bloom", ("G1",)),
        ("llama", everywhere),
    ):
        register(
            Defect(
                f"padding, {family}",
                "eos_pooling",
                "largest change of a reward by left, right, both-side or inner padding",
                generations,
                f"{here}measure_{family}",
            )
        )
    register(
        Defect(
            "no mask",
            "eos_pooling",
            "change of an unpadded row's reward when attention_mask is left out",
            ("G2", "G3", "G4"),
            here + "measure_no_mask",
        )
    )
    register(
        Defect(
            "float mask",
            "eos_pooling",
            "change of a reward when attention_mask is of floats",
            ("G2", "G3", "G4"),
            here + "measure_float_mask",
        )
    )
    register(
        Defect(
            "bf16 backbone",
            "eos_pooling",
            "rewards lost, of three, with a bf16 backbone under an fp32 head",
            ("G1", "G2"),
            here + "measure_bf16",
        )
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
    """The padding error of a tiny GPT-2 reward model."""
    return _padding_error("gpt2")


def measure_opt() -> float:
    """The padding error of a tiny OPT reward model."""
    return _padding_error("opt")


def measure_bloom() -> float:
    """The padding error of a tiny BLOOM reward model."""
    return _padding_error("bloom")


def measure_llama() -> float:
    """The padding error of a tiny LLaMA reward model."""
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
    """The change of a reward when the mask is of floats."""
    return _mask_error(lambda mask: mask.float())


def measure_bf16() -> float:
    """How many of three rewards are not finite with a bf16 backbone under an fp32 head."""
    import torch

    from coati_ext.testing import tiny_reward_model

    model = tiny_reward_model("llama")
    model.model.bfloat16()
    ids = torch.tensor([[1, 9, 2], [1, 8, 2], [1, 7, 2]])
    return float((~_rewards(model, ids, torch.ones_like(ids)).isfinite()).sum())
