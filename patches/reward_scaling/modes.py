"""The built-in choices of ``scale_reward``. Letters: B rows.

What they know of a model is kept on the model: a calibration in the stamp that it was loaded with,
the running moments as one tensor on the reward model and on the critic that learns from it, whose
stamp carries them into its checkpoints and back.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, List, Mapping, Optional

from coati_ext import hookimpl, tensors
from coati_ext.checkpoints.stamp import CRITIC, LOADED, MOMENTS, RUNNING, SOURCE
from coati_ext.errors import StampError
from coati_ext.rollout.models import layers_of

if TYPE_CHECKING:
    from torch import Tensor


@hookimpl(specname="scale_reward")
def off(reward: Tensor) -> Tensor:
    """The rewards (B,) as the reward model gives them."""
    return reward


@hookimpl(specname="scale_reward")
def reference(reward: Tensor, model: Any, maker: Any) -> Tensor:
    """``(reward - mean) / spread`` of the reference answers of the model's checkpoint: (B,).

    Rewards of a model that was made or trained in this process stay as they are outside rollouts:
    its own evaluation comes before it can be calibrated.

    Raises:
        StampError: the model was loaded from a checkpoint without a calibration, or is to score a
            rollout without one.
    """
    if model is None:  # its forwards have scaled them
        return reward
    if maker is None and not hasattr(model, LOADED):
        return reward
    scale = scale_of(model)
    return tensors.scaled(reward, float(scale["mean"]), float(scale["spread"]))


def scale_of(model: Any) -> Mapping[str, str]:
    """The calibration in the stamp that a reward model was loaded with.

    Raises:
        StampError: there is none.
    """
    scale: Optional[Mapping[str, str]] = (getattr(model, LOADED, None) or {}).get("scale")
    if scale is None:
        raise StampError(_uncalibrated(getattr(model, SOURCE, None)))
    return scale


def _uncalibrated(source: Optional[str]) -> str:
    told = "this reward model comes from no checkpoint" if source is None else source
    checkpoint = source if source is not None and Path(source).exists() else "CHECKPOINT"
    return (
        f"{told}: it is not calibrated, and reward_scaling.mode is reference. Type `coati-ext "
        f"calibrate {checkpoint} --pretrained NAME --data ANSWERS.jsonl` and load it again, or set "
        "reward_scaling.mode = running"
    )


@hookimpl(specname="scale_reward")
def running(reward: Tensor, model: Any, maker: Any) -> Tensor:
    """``(reward - mean) / spread`` over the scores of all rollouts so far on all ranks: (B,).

    The scores of a rollout count for themselves, so they are scaled together when all are known.
    Outside rollouts rewards are scaled by the last rollout's moments, and stay as they are before
    the first one.
    """
    import torch

    if model is not None:
        known = getattr(model, MOMENTS, None)
        return reward if maker is not None or known is None else _scaled(reward, known)
    if not isinstance(maker.reward_model, torch.nn.Module):  # functions, whose level is the user's
        return reward
    from coati_ext.rollout import ranks

    holders = [*(valued(maker.reward_model) or [maker.reward_model]), *valued(maker.critic)]
    before = _moments_of(holders, reward.device)
    fresh = ranks.each(tensors.reward_moments(reward))
    moments = tensors.combined_moments(torch.cat([before.unsqueeze(0), fresh]))
    for holder in holders:
        setattr(holder, MOMENTS, moments)
    return _scaled(reward, moments)


def _scaled(reward: Tensor, moments: Tensor) -> Tensor:
    return tensors.scaled(reward, *tensors.mean_and_spread(moments))


def valued(model: Any) -> List[Any]:
    """The module inside any wrappers that has a value head, if there is one."""
    layers = layers_of(model)
    return [layer for layer in layers if "value_head" in getattr(layer, "_modules", {})][:1]


def _moments_of(holders: List[Any], device: Any) -> Tensor:
    """The moments of earlier rollouts, in this process or before the critic was saved: (3,)."""
    import torch

    for holder in holders:
        if hasattr(holder, MOMENTS):
            known: Tensor = getattr(holder, MOMENTS).to(device)
            return known
    for holder in holders:
        loaded = getattr(holder, LOADED, None) or {}
        scale = loaded.get("scale")
        if loaded.get("kind") == CRITIC and scale is not None and scale["source"] == RUNNING:
            count, mean, spread = (float(scale[name]) for name in ("count", "mean", "spread"))
            numbers = [count, mean, count * spread**2]
            return torch.tensor(numbers, dtype=torch.float64, device=device)
    return torch.zeros(3, dtype=torch.float64, device=device)
