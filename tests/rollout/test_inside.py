"""Log-probabilities of real actions, computed inside a wrapped actor, are those of all logits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import coati_ext
from coati_ext import tensors
from coati_ext.rollout import Frame, inside
from coati_ext.rollout.log_probs import log_probs_of
from coati_ext.rollout.models import frame_inputs, without_dropout
from coati_ext.testing import families, tiny_actor
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


@pytest.fixture(autouse=True)
def on(upstream):
    with coati_ext.applied():
        yield


@pytest.mark.parametrize("family", families())
def test_values_and_gradients_are_those_of_all_logits(family):
    model, frame = tiny_actor(family, seed=3), frame_of()
    without_dropout(model)
    assert inside.language_model(model) is not None
    got = coati_ext.choice("action_log_probs")(model, frame)
    truth = from_all_logits(model, frame)
    torch.testing.assert_close(got, truth, rtol=0, atol=1e-5)
    assert not got[~frame.action_mask].any()
    assert_same_gradients(gradients(model, got), gradients(model, truth))


class Adapted(nn.Linear):
    """A head that is more than its weight."""

    def forward(self, hidden):
        return super().forward(hidden) + hidden.sum(dim=-1, keepdim=True).sin() * self.weight[:, 0]


@pytest.mark.parametrize("kind", ["class", "hook"])
def test_another_head_is_called_itself(kind, monkeypatch):
    monkeypatch.setattr("coati_ext.rollout.log_probs._AT_ONCE", 4)
    torch.manual_seed(0)
    head, hidden, ids = Adapted(5, 30), torch.randn(11, 5), torch.randint(30, (11,))
    if kind == "hook":
        head = nn.Linear(5, 30)
        head.register_forward_hook(lambda module, given, out: out * 2)
    hidden.requires_grad_()
    rows = []
    head.register_forward_pre_hook(lambda module, given: rows.append(len(given[0])))
    found = log_probs_of(head, hidden, ids)
    truth = head(hidden).log_softmax(dim=1).gather(1, ids.view(-1, 1)).squeeze(1)
    assert rows == [4, 4, 3, 11]
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-5)
    wanted = [hidden, *head.parameters()]
    for got, other in zip(*(torch.autograd.grad(it.sum(), wanted) for it in (found, truth))):
        torch.testing.assert_close(got, other, rtol=0, atol=1e-5)


def test_the_forward_is_given_back_whatever_happens():
    inner = nn.Linear(2, 2)
    wrapper = nn.Sequential(inner)
    inner.forward = own = lambda given: given + 1  # as shardformer's
    with pytest.raises(ZeroDivisionError):
        inside.through(wrapper, inner, lambda: 1 / 0, torch.ones(1))
    assert inner.forward is own
    del inner.forward
    assert inside.through(wrapper, inner, lambda: "found", torch.ones(1)) == "found"
    assert "forward" not in vars(inner)


def test_what_changes_logits_after_the_head_is_not_reached():
    model = tiny_actor("gpt2", seed=3)
    inner = inside.language_model(model)
    inner.config.final_logit_softcapping = 30.0
    assert inside.language_model(model) is None
    torch.testing.assert_close(
        coati_ext.choice("action_log_probs")(model, frame_of()).masked_fill(~MASK[:, 4:], 0),
        from_all_logits(model, frame_of()),
    )


def unequal_ranks(rank):
    """Gradients of rank 0 with two rows and rank 1 with one: through DDP, and past it."""
    with coati_ext.applied():
        rows = [slice(0, 2), slice(2, 3)][rank]
        through, past = {}, {}
        for wrapped, found in ((True, through), (False, past)):
            model = tiny_actor("llama", seed=3)
            without_dropout(model)
            ddp = nn.parallel.DistributedDataParallel(model)
            out = coati_ext.choice("action_log_probs")(ddp if wrapped else model, frame_of(rows))
            found.update(gradients(model, out))
        return [{name: item.tolist() for name, item in it.items()} for it in (through, past)]


@pytest.mark.slow
@pytest.mark.enough("G4", why="DDP is that of torch")
def test_ranks_of_unequal_data_share_one_gradient(tmp_path):
    ranks = on_two_ranks(unequal_ranks, tmp_path)
    (first, first_past), (second, second_past) = (
        [{name: torch.tensor(item) for name, item in it.items()} for it in rank] for rank in ranks
    )
    single = []
    for rows in (slice(0, 2), slice(2, 3)):
        model = tiny_actor("llama", seed=3)
        without_dropout(model)
        single.append(gradients(model, from_all_logits(model, frame_of(rows))))
    average = {name: (item + single[1][name]) / 2 for name, item in single[0].items()}
    for got in (first, second):
        assert_same_gradients(got, average)
    # Past the wrapper each rank keeps its own: what this test is here to see.
    with pytest.raises(AssertionError):
        assert_same_gradients(first_past, second_past)
    assert_same_gradients(first_past, single[0])
