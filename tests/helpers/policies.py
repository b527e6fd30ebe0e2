"""Updates of ``coati.distributed``, as gradients."""

from __future__ import annotations

import torch
import transformers

from coati_ext.testing import cpu_only, grpo_consumer, learn, sampled, tiny_config

PROMPTS = [[1, 5, 9], [1, 7, 8, 11, 12], [1, 33], [1, 20, 21, 22]]


def language_model(family: str, seed: int = 0, **config):
    """A tiny one, whose weights depend on nothing else."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transformers.AutoModelForCausalLM.from_config(tiny_config(family, **config))


def gradient(family="llama", *, prompts=PROMPTS, mini=None, data=None, **config):
    """What an update in minibatches of ``mini`` prompts moves the weights by, and its loss."""
    policy = language_model(family)
    reference = language_model(family, seed=1).eval() if config.get("beta") else None
    with cpu_only():
        minibatch = data or sampled(policy, prompts, width=8)
        before = flat(policy)
        size = len(prompts)
        consumer = grpo_consumer(policy, reference, batch_size=size, minibatch_size=mini, **config)
        for index in range(0, size, mini or size):
            part = {name: item[index : index + (mini or size)] for name, item in minibatch.items()}
            loss = learn(consumer, part, index // (mini or size))
    return before - flat(policy), loss


def flat(model):
    return torch.cat([item.detach().flatten().clone() for item in model.parameters()])


def apart(found, right):
    """The relative distance of a gradient from another."""
    return float((found - right).norm() / right.norm())
