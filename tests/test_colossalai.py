"""The patched reward model inside ColossalAI's own wrappers gives the unwrapped numbers."""

from __future__ import annotations

import pytest
import torch

import coati_ext
from coati_ext.install import version_of
from coati_ext.testing import cpu_only, layouts, random_rows, tiny_reward_model

OLD = (version_of("colossalai") or "0") < "0.4"


@pytest.mark.skipif(version_of("colossalai") is None, reason="colossalai is not installed")
@pytest.mark.skipif(OLD, reason="colossalai before 0.4 moves every boosted model to CUDA")
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_boosted_reward_model_has_the_rewards_and_gradients_of_its_own(upstream, family):
    from colossalai.booster import Booster
    from colossalai.booster.plugin import TorchDDPPlugin

    def step(model, run):
        _, ids, mask = list(layouts(random_rows((2, 3, 7)), pad_token_id=0))[-1]
        rewards = run(ids, attention_mask=mask)
        rewards.sum().backward()
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        return rewards.detach(), torch.cat(gradients)

    with coati_ext.applied(), cpu_only():
        model = tiny_reward_model(family)
        rewards, gradients = step(model, model)
        model = tiny_reward_model(family)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        boosted = Booster(plugin=TorchDDPPlugin()).boost(model, optimizer)[0]
        assert type(boosted) is not type(model)
        boosted_rewards, boosted_gradients = step(model, boosted)
    assert boosted_rewards.sub(rewards).abs().max() <= 1e-6
    assert boosted_gradients.sub(gradients).abs().max() <= 1e-5
