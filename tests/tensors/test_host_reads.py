"""No function on tensors waits for the device."""

from __future__ import annotations

import torch

from coati_ext import tensors
from helpers.host_reads import HostReads


def test_nothing_is_read_back_to_the_host():
    torch.manual_seed(0)
    values, rewards = torch.randn(2, 3, 5)
    mask = torch.arange(5) < torch.tensor([[5], [2], [0]])
    ids = torch.randint(9, (3, 7))
    with HostReads() as reads:
        tensors.gae(values, rewards, mask, 0.9, 0.9)
        tensors.sequence_advantage(values, rewards, mask)
        tensors.group_advantage(values[:, 0], rewards[:, 0], 3, 0.1)
        tensors.whitened(values, mask, tensors.moments(values, mask))
        tensors.terminal_reward(values[:, 0], rewards, mask)
        tensors.every_token_reward(values[:, 0], rewards, mask)
        tensors.kl_estimate(values, "k3")
        tensors.answer_mask(ids, 2, [[3], [4, 5]])
        tensors.selected_log_probs(torch.randn(3, 5, 9), ids[:, 2:])
        tensors.without_outer_pads(ids, 0)
        tensors.policy_loss(*tensors.policy_ratio(values, rewards, mask)[:1], values, mask, 0.2)
        tensors.joint_sums(values, rewards, mask)
        tensors.calibration_sums(values[:, 0])
        scale = tensors.combined_moments(tensors.reward_moments(values[:, 0]).unsqueeze(0))
        tensors.scaled(values[:, 0], *tensors.mean_and_spread(scale))
        tensors.centring_loss(values[:, 0], rewards[:, 0])
        tensors.value_loss(values, rewards, values, mask, 0.2)
        tensors.trimmed(ids, torch.ones_like(ids, dtype=torch.bool))  # one on CUDA, none here
        head, hidden = torch.randn(9, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
        with torch.autograd.set_detect_anomaly(False):  # upstream's ORPO trainer leaves it on
            tensors.head_log_probs(hidden, head, None, ids[:, 0]).sum().backward()
    assert reads.seen == []
