"""Measure log-probabilities, policy ratios and KL."""

from __future__ import annotations

from importlib import import_module
from inspect import signature
from typing import TYPE_CHECKING, Any

from .making import ANSWERS, PROMPTS, answered, indifferent, seeded

if TYPE_CHECKING:
    from torch import Tensor


def measure_old_log_probs() -> float:
    """The largest difference between a stored log-probability and that of the unpadded row."""
    import torch

    from coati_ext.testing import tiny_models, tiny_tokenizer

    models = tiny_models("gpt2")
    made = answered(models, tiny_tokenizer(padding_side="left"))
    differences = []
    for stored, prompt, answer in zip(made.action_log_probs, PROMPTS, ANSWERS):
        ids = torch.tensor([prompt + answer])
        with torch.no_grad():
            alone = _log_probs(models.actor, ids, torch.ones_like(ids), len(answer))
        differences.append(float((stored[: len(answer)] - alone[0]).abs().max()))
    return max(differences)


def measure_dropout() -> float:
    """The largest distance of a policy ratio from 1 before the first update, with dropout."""
    import torch

    from coati_ext.testing import tiny_models, tiny_tokenizer

    models = tiny_models("opt")
    for module in models.actor.modules():
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.1
    disable = getattr(import_module("coati.models"), "disable_dropout", None)
    if disable is not None:  # the scripts of G3 and G4 call it
        disable(models.actor)
    made = answered(models, tiny_tokenizer(padding_side="left"))
    models.actor.train()
    with torch.no_grad(), seeded():
        new = _log_probs(
            models.actor, made.sequences, made.attention_mask, made.action_log_probs.size(1)
        )
    ratio = ((new - made.action_log_probs) * made.action_mask).exp()
    return float((ratio - 1).abs().max())


def measure_penalty() -> float:
    """By how many nats the KL penalty per token exceeds 10, with answers unlikely for the actor."""
    from coati_ext.testing import tiny_models, tiny_tokenizer

    models = tiny_models("gpt2")._replace(reward_model=indifferent())
    sharpen(models.actor)
    made = answered(models, tiny_tokenizer(padding_side="left"), kl_coef=0.1)
    per_token = -made.reward / 0.1 / made.action_mask.sum(dim=1)
    return float((per_token - 10).max().clamp(min=0))


def measure_logged_kl() -> float:
    """The lowest logged KL of actions unlikely under the reference model; 0 if none is negative."""
    from coati_ext.testing import tiny_models, tiny_tokenizer

    models = tiny_models("gpt2")
    sharpen(models.initial_model)
    made = answered(models, tiny_tokenizer(padding_side="left"))
    return float(made.kl.min().clamp(max=0))


def _log_probs(actor: Any, ids: Tensor, mask: Tensor, actions: int) -> Tensor:
    """Log-probabilities (B, A) as upstream's trainers compute them."""
    if "num_actions" in signature(actor.forward).parameters:  # before v0.3.1
        log_probs: Tensor = actor(ids, actions, attention_mask=mask)
        return log_probs
    logits = actor(ids, attention_mask=mask)["logits"][:, -actions - 1 : -1]
    log_probs = logits.log_softmax(dim=-1).gather(-1, ids[:, -actions:, None]).squeeze(-1)
    return log_probs


def sharpen(model: Any) -> None:
    """Scale a GPT-2's final layer norm, so that almost every token gets near-zero probability."""
    import torch

    norm = next(part for name, part in model.named_modules() if name.endswith("ln_f"))
    with torch.no_grad():
        norm.weight.mul_(100)
