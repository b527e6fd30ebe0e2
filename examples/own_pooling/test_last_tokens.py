"""The plugin does what it says: `python -m pytest`, with `--coati FOLDER` on a real coati."""

from pathlib import Path

import pytest
import torch

import coati_ext
from coati_ext.testing import (
    assert_batch_invariant,
    assert_padding_invariant,
    standin,
    tiny_reward_model,
)

PLUGIN = Path(__file__).with_name("last_tokens.py")


@pytest.fixture(autouse=True)
def the_plugin(request, monkeypatch):
    """Use it on the given coati, or on coati-ext's stand-in for the newest."""
    monkeypatch.syspath_prepend(request.config.getoption("--coati") or str(standin("G4")))
    with coati_ext.applied({"plugins": [str(PLUGIN)]}):
        yield


@pytest.mark.parametrize("family", ["gpt2", "llama", "bloom"])
def test_a_score_depends_on_nothing_but_its_row(family):
    model = tiny_reward_model(family)
    assert_padding_invariant(model)
    assert_batch_invariant(model)


@pytest.mark.parametrize("length", [1, 3, 4, 9])
def test_a_score_is_that_of_the_mean_of_the_last_four(length):
    model, ids = tiny_reward_model("gpt2"), torch.arange(4, 4 + length)[None]
    hidden = model.model(ids)["last_hidden_state"]
    expected = model.value_head(hidden[:, -4:].mean(dim=1)).squeeze(1)
    torch.testing.assert_close(model(ids, torch.ones_like(ids)), expected)


def test_it_learns():
    """Each of the last four tokens moves the score, so that training reaches all of them."""
    model, ids = tiny_reward_model("gpt2"), torch.arange(4, 10)[None]
    states = []
    model.model.register_forward_hook(lambda _, __, out: states.append(out["last_hidden_state"]))
    score = model(ids, torch.ones_like(ids))
    (gradient,) = torch.autograd.grad(score.sum(), states)
    assert gradient[0].abs().sum(dim=1).gt(0).tolist() == [False, False, True, True, True, True]
