"""Log-probabilities of real actions, computed inside a wrapped actor, are those of all logits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import coati_ext
from coati_ext import tensors
from coati_ext.rollout import Frame, inside
from coati_ext.rollout.log_probs import log_probs_of
from coati_ext.rollout.models import frame_inputs, layers_of, without_dropout
from coati_ext.testing import FAMILIES, tiny_actor
from helpers.processes import on_two_ranks

MASK = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1, 0]]).bool()


def frame_of(rows=slice(None)):
    ids = torch.arange(21).view(3, 7) * 5 % 23 + 1
    return Frame.of(ids.masked_fill(~MASK, 0)[rows], MASK[rows], MASK[rows, 4:])


def from_all_logits(model, frame):
    logits = model(
        frame.sequences, **frame_inputs(model, frame.attention_mask, frame.position_ids)
    )["logits"]
    found = tensors.selected_log_probs(logits[:, 3:-1], frame.sequences[:, 4:])
    return found.masked_fill(~frame.action_mask, 0)


def gradients(model, log_probs):
    model.zero_grad()
    (log_probs * torch.sin(torch.arange(9.0).view(3, 3)[: len(log_probs)] + 1)).sum().backward()
    return {
        name: item.grad.clone() for name, item in model.named_parameters() if item.grad is not None
    }


def assert_same_gradients(got, truth):
    assert set(got) == set(truth)
    size = max(float(item.abs().max()) for item in truth.values())
    for name, item in got.items():
        assert float((item - truth[name]).abs().max()) <= 1e-5 * size, name
