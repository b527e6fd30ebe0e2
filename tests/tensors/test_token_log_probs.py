"""Log-probabilities in tiles are those of the whole logits, in values and gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import linear
from torch.utils._python_dispatch import TorchDispatchMode

from coati_ext import tensors
from coati_ext.tensors import token_log_probs


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(token_log_probs, "_HELD", {"cpu": 1})
    monkeypatch.setattr(token_log_probs, "_NARROWEST", 7)


def example(tokens=11, vocabulary=40, dtype=torch.float32, scale=1.0, bias=True):
    generator = torch.Generator().manual_seed(tokens * vocabulary)
    hidden, weight, shift = (
        (torch.randn(*shape, generator=generator, dtype=torch.float64) * size).to(dtype)
        for shape, size in (((tokens, 5), scale), ((vocabulary, 5), 1), ((vocabulary,), scale))
    )
    ids = torch.randint(vocabulary, (tokens,), generator=generator)
    return hidden, weight, shift if bias else None, ids


def whole(hidden, weight, bias, ids):
    """The reference, which holds all logits."""
    logits = linear(hidden, weight, bias)
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return wide.log_softmax(dim=1).gather(1, ids.unsqueeze(1)).squeeze(1)


def values_and_gradients(compute, hidden, weight, bias, ids):
    given = [
        None if item is None else item.clone().requires_grad_() for item in (hidden, weight, bias)
    ]
    out = compute(*given, ids)
    weights = torch.sin(torch.arange(len(ids), dtype=out.dtype) + 1)
    (out * weights).sum().backward()
    return out.detach(), [item.grad for item in given if item is not None]


def assert_same(arguments, tolerance):
    got, gradients = values_and_gradients(tensors.head_log_probs, *arguments)
    truth, expected = values_and_gradients(whole, *arguments)
    assert got.dtype == truth.dtype
    torch.testing.assert_close(got, truth, rtol=1e-6, atol=1e-5)
    for gradient, other in zip(gradients, expected):
        assert gradient.dtype == other.dtype
        size = float(other.abs().max()) if other.numel() else 0.0
        torch.testing.assert_close(gradient, other, rtol=0, atol=tolerance * max(size, 1e-3))


@pytest.mark.parametrize("scale", [1.0, 1e3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)],
)
def test_values_and_gradients_are_those_of_all_logits(dtype, tolerance, bias, scale):
    if dtype == torch.float16:
        scale = min(scale, 100.0)  # logits beyond 65504 are infinite in both
        if torch.__version__ < "2.1":
            pytest.skip("this torch multiplies no float16 on a CPU")
    # A logit is rounded as its size is, and a product of another shape rounds otherwise.
    assert_same(example(dtype=dtype, scale=scale, bias=bias), tolerance * max(1.0, scale / 10))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 9), st.integers(1, 50), st.integers(1, 60), st.booleans())
def test_any_tile_gives_the_same(tokens, vocabulary, width, bias):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_log_probs, "_NARROWEST", width)
        assert_same(example(tokens, vocabulary, torch.float64, bias=bias), 1e-12)


def test_the_gradient_is_that_of_finite_differences():
    hidden, weight, bias, ids = example(4, 17, torch.float64)
    given = [item.requires_grad_() for item in (hidden, weight, bias)]
    assert torch.autograd.gradcheck(lambda *given: tensors.head_log_probs(*given, ids), given)


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_only_what_needs_a_gradient_gets_one(wanted):
    *given, ids = example()
    given[wanted].requires_grad_()
    tensors.head_log_probs(*given, ids).sum().backward()
    assert [item.grad is not None for item in given] == [n == wanted for n in range(3)]


def test_autocast_is_that_of_a_linear_layer():
    arguments = example()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(arguments, 2e-2)
        assert not torch.equal(
            tensors.head_log_probs(*arguments),
            tensors.head_log_probs(*(item.double() for item in arguments[:3]), arguments[3]),
        )


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that an operation gives."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for item in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(item, torch.Tensor):
                self.elements = max(self.elements, item.numel())
        return out


def test_no_tensor_is_larger_than_a_tile_or_the_head(monkeypatch):
    monkeypatch.setattr(token_log_probs, "_NARROWEST", 16)
    arguments = example(tokens=200, vocabulary=1000)
    with Largest() as ours:
        values_and_gradients(tensors.head_log_probs, *arguments)
    with Largest() as plain:
        values_and_gradients(whole, *arguments)
    assert ours.elements == 1000 * 5  # the head and its gradient; a tile has 200 * 16
    assert plain.elements == 200 * 1000
