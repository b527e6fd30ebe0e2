"""The reward of a row is V at its last real token: alone, padded anywhere, in any company."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import coati_ext
from coati_ext.patches.eos_pooling.pooling import masked_mean
from coati_ext.testing import (
    assert_batch_invariant,
    assert_matches_sequence_classification,
    assert_padding_invariant,
    layouts,
    random_rows,
    tiny_reward_model,
)
from helpers.host_reads import HostReads

pytestmark = pytest.mark.enough("G1", "G3", "G4", why="G2 is given the function of G1")
EACH = pytest.mark.enough("G1", "G2", "G3", "G4", why="each has another forward")
ATOL = 1e-5  # float32, random tiny models whose rewards have a spread of 1
PADS = {"pad": 0, "pad == eos": 2}
OLD_TORCH = int(torch.__version__.split(".")[0]) < 2


def score(model, ids, mask=None):
    with torch.no_grad():
        return model(ids, attention_mask=mask)


def rows():
    return random_rows((1, 2, 3, 7, 12))


@pytest.mark.parametrize("pad", PADS.values(), ids=PADS.keys())
def test_padding_does_not_move_a_reward(on, family, pad):
    assert_padding_invariant(tiny_reward_model(family), rows=rows(), pad_token_id=pad, atol=ATOL)


@pytest.mark.parametrize("pad", PADS.values(), ids=PADS.keys())
def test_batch_mates_do_not_move_a_reward(on, family, pad):
    assert_batch_invariant(tiny_reward_model(family), rows=rows(), pad_token_id=pad, atol=ATOL)


def test_the_reward_is_that_of_hugging_faces_own_head(on, family):
    assert_matches_sequence_classification(tiny_reward_model(family), rows=rows(), atol=ATOL)


@EACH
def test_unpatched_upstream_moves_the_reward(upstream):
    """What the tests above would say of upstream itself, so that they are known to be able to."""
    with pytest.raises(AssertionError):
        assert_padding_invariant(tiny_reward_model("gpt2"), rows=rows()[1:], atol=ATOL)


@settings(max_examples=25)
@given(st.data())
def test_any_mask_scores_as_the_compacted_row(on, data):
    model = tiny_reward_model("llama", layers=1, hidden_size=16)
    width = data.draw(st.integers(1, 10))
    mask = data.draw(st.lists(st.booleans(), min_size=width, max_size=width).filter(any))
    ids = torch.tensor([data.draw(st.lists(st.integers(0, 63), min_size=width, max_size=width))])
    mask = torch.tensor([mask])
    alone = score(model, ids[mask].unsqueeze(0))
    assert score(model, ids, mask).sub(alone).abs().max() <= ATOL


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.int64, torch.int32, torch.float32, torch.float16]
)
def test_masks_of_any_dtype_positional_or_by_keyword(on, dtype):
    model = tiny_reward_model("gpt2")
    for _, ids, mask in layouts(rows(), pad_token_id=0):
        expected = score(model, ids, mask)
        with torch.no_grad():
            assert model(ids, mask.to(dtype)).equal(expected)
            assert model(ids, attention_mask=mask.to(dtype)).equal(expected)


def test_without_a_mask_every_token_is_real(on):
    model = tiny_reward_model("gpt2")
    ids = torch.tensor([[1, 5, 0, 0, 9, 2]])
    with torch.no_grad():
        model(ids)  # the first forward packs rows even without pads, to see whether it can
        assert model(ids).equal(model(ids, torch.ones_like(ids)))


@EACH
def test_rows_without_eos_and_rows_of_one_token(on):
    model = tiny_reward_model("llama")
    assert_padding_invariant(model, rows=[[9], [2], [5, 6, 7], [2, 2, 8]], atol=ATOL)


def test_pads_may_be_any_token(on):
    """What stands under a mask of zero has no say: not even the end token or a word."""
    model = tiny_reward_model("gpt2")
    _, ids, mask = next(layouts(rows(), pad_token_id=0))
    other = torch.where(mask.bool(), ids, torch.randint_like(ids, 64))
    assert score(model, other, mask).sub(score(model, ids, mask)).abs().max() <= ATOL


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_layouts_of_one_width_are_one_and_the_same_to_the_last_bit(on, family, dtype):
    model = tiny_reward_model(family).to(dtype)
    first, *others = [score(model, ids, mask) for _, ids, mask in layouts(rows(), pad_token_id=0)]
    assert first.isfinite().all()
    assert all(rewards.equal(first) for rewards in others)


def test_in_double_precision_padding_moves_a_reward_by_rounding_only(on):
    # The other families put finfo(float64).min through float32, which overflows.
    assert_padding_invariant(tiny_reward_model("gpt_neox").double(), rows=rows(), atol=1e-12)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_half_precision_backbone_may_carry_a_full_precision_head(on, name):
    model = tiny_reward_model(name)
    exact = score(model, torch.tensor([[1, 5, 6, 2]]))
    model.model.bfloat16()
    got = score(model, torch.tensor([[1, 5, 6, 2]]))
    assert got.dtype == torch.float32
    assert got.sub(exact).abs().max() < 0.2  # bf16 has 8 bits
    model.bfloat16()
    assert score(model, torch.tensor([[1, 5, 6, 2]])).dtype == torch.bfloat16


def test_gradients_are_those_of_the_row_alone(on):
    def gradients(ids, mask):
        model = tiny_reward_model("gpt_neox").double()
        model(ids, mask).sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    row = [1, 9, 8, 2]
    alone = gradients(torch.tensor([row]), torch.ones(1, 4))
    for name, ids, mask in layouts([row], pad_token_id=0):
        assert gradients(ids, mask).sub(alone).abs().max() < 1e-12, name


def test_bad_masks_are_refused_with_rows_and_shapes(on):
    model = tiny_reward_model("gpt2")
    ids = torch.tensor([[1, 5, 2], [1, 6, 2]])
    with pytest.raises(ValueError, match=r"\(2, 2\).*\(2, 3\)"):
        model(ids, torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"row 1 .*no real token"):
        model(ids, torch.tensor([[1, 1, 1], [0, 0, 0]]))


def test_masked_mean_is_the_mean_over_real_tokens(upstream):
    with coati_ext.applied({"eos_pooling": {"pooling": "masked_mean"}}):
        model = tiny_reward_model("llama")
        assert_padding_invariant(model, rows=rows(), atol=ATOL)
        ids = torch.tensor([[1, 5, 6, 2]])
        with torch.no_grad():
            hidden = model.model(ids)["last_hidden_state"].mean(dim=1)
            assert model(ids).sub(model.value_head(hidden).squeeze(1)).abs().max() <= ATOL
            model.model.bfloat16()
            assert model(ids).isfinite().all()


def test_a_plugin_can_pool(upstream):
    """`pool_reward` gets left-padded hidden states, their mask, the scored columns, the model."""
    Path("first_token.py").write_text(
        "from coati_ext import hookimpl\n\n@hookimpl\n"
        "def pool_reward(hidden, attention_mask, positions, model):\n"
        "    assert hidden.shape[:2] == attention_mask.shape\n"
        "    assert attention_mask[:, -1].all() and (positions == hidden.shape[1] - 1).all()\n"
        "    assert hasattr(model, 'value_head')\n"
        "    first = attention_mask.long().argmax(dim=1)\n"
        "    return hidden[range(len(hidden)), first]\n"
    )
    with coati_ext.applied({"plugins": ["./first_token.py"]}):
        model = tiny_reward_model("gpt2")
        assert_padding_invariant(model, rows=rows(), atol=ATOL)
        starts = [[9, 5, 2], [9, 7, 7, 2]]  # the first token alone decides now
        _, ids, mask = next(layouts(starts, pad_token_id=0))
        first, second = score(model, ids, mask)
        assert abs(first - second) <= ATOL


@pytest.mark.parametrize("level", ["off", "auto"])
def test_the_hot_path_reads_nothing_back(upstream, family, level):
    """Beside what Hugging Face's own backbone does with the same inputs."""
    with coati_ext.applied({"token_saving": {"level": level}}):
        whole, backbone = reads_of(tiny_reward_model(family))
    if level == "off":
        assert whole == backbone
    else:  # without a mask a backbone reads less
        assert set(whole) <= set(backbone)


def reads_of(model):
    """Of the whole model, and of the backbone with the inputs that it was given."""
    _, ids, mask = list(layouts(rows(), pad_token_id=0))[-1]
    with torch.no_grad(), HostReads() as whole:
        model(ids, mask)
    calls = []
    forward = model.model.forward
    model.model.forward = lambda *args, **kwargs: (
        calls.append((args, kwargs)) or forward(*args, **kwargs)
    )
    score(model, ids, mask)
    del model.model.forward
    with torch.no_grad(), HostReads() as backbone:
        model.model(*calls[0][0], **calls[0][1])
    return whole.seen, backbone.seen


def test_wrappers_are_seen_through(on):
    """The backbone inside a wrapper whose forward says only ``**kwargs`` still gets positions."""
    from torch import nn

    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, *args, **kwargs):
            return self.module(*args, **kwargs)

    model = tiny_reward_model("gpt2")
    model.model = Wrapper(Wrapper(model.model))
    assert_padding_invariant(model, rows=rows(), atol=ATOL)


def test_models_survive_pickling_and_copying(on):
    model = tiny_reward_model("gpt2")
    ids = torch.tensor([[1, 5, 2]])
    expected = score(model, ids)
    assert score(pickle.loads(pickle.dumps(model)), ids).equal(expected)
    assert score(copy.deepcopy(model), ids).equal(expected)
    assert pickle.loads(pickle.dumps(model.forward))(ids).equal(expected)


@EACH
def test_the_replacement_looks_like_what_it_replaces(upstream):
    import inspect

    from coati.models import RewardModel

    before = inspect.signature(RewardModel.forward)
    with coati_ext.applied():
        assert inspect.signature(RewardModel.forward) == before
        assert "patches" in inspect.getsourcefile(RewardModel.forward)
        assert "_score(" in inspect.getsource(RewardModel.forward)
    assert inspect.signature(RewardModel.forward) == before


@pytest.mark.skipif(OLD_TORCH, reason="torch.compile came with torch 2")
def test_it_compiles_without_a_graph_break(on):
    model = tiny_reward_model("gpt2")
    _, ids, mask = next(layouts(rows(), pad_token_id=0))
    expected = score(model, ids, mask)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert score(compiled, ids, mask).sub(expected).abs().max() <= ATOL


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_mean_over_many_tokens_is_as_precise_as_its_dtype(dtype):
    """A mean in fp32 would lose what float64 hidden states have."""
    hidden = torch.full((1, 2000, 1), 1 + 2**-40, dtype=dtype)
    mean = masked_mean(hidden, torch.ones(1, 2000, dtype=torch.bool))
    assert mean.dtype == dtype
    assert torch.allclose(mean, hidden[:, 0], rtol=8 * torch.finfo(dtype).eps, atol=0)
