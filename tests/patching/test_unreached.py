"""Models that are copied, pickled, compiled or given a forward of their own, before and after."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import pickle
import types

import cloudpickle
import pytest
import torch

import coati_ext
from coati_ext.patching import unreached
from coati_ext.testing import tiny_critic, tiny_reward_model

ATOL = 1e-5  # float32, values that spread by about 1
OLD_TORCH = int(torch.__version__.split(".")[0]) < 2
IDS = torch.tensor([[0, 0, 0, 1, 9, 2], [1, 5, 6, 7, 8, 2]])  # a padded row, and a full one
MASK = (IDS != 0).long()


def scores(model):
    """Of a model or a bound method."""
    with torch.no_grad():
        return model(IDS, attention_mask=MASK)


def real(found):
    """Of real tokens: what a critic says of pads is not used, and a compiled one says other."""
    return found if found.dim() == 1 else found[:, -2:]


def differ(one, other):
    return one.shape != other.shape or one.sub(other).abs().max() > 100 * ATOL


def notes_of(report):
    return [note for note in report.notes if "before enable()" in note]


def given_a_forward(model, wrap):
    """As accelerate and shardformer do it to single instances."""
    old = model.forward

    @functools.wraps(old)
    def forward(*args, **kwargs):
        return old(*args, **kwargs)

    if wrap == "function":
        function = old.__func__
        model.forward = types.MethodType(lambda self, *a, **k: function(self, *a, **k), model)
    else:
        model.forward = forward


@pytest.mark.parametrize("make", [tiny_reward_model, tiny_critic])
def test_models_and_copies_made_before_or_after_are_what_the_flag_says(upstream, make):
    """Nothing of ours is in a model: not in one made with the patches on either."""
    old = make("gpt2")
    off, copied = scores(old), copy.deepcopy(old)
    with coati_ext.applied() as report:
        assert notes_of(report) == []
        on = scores(old)
        new = make("gpt2")
        assert differ(on, off)
        for model in (copied, new, copy.deepcopy(old), pickle.loads(pickle.dumps(old))):
            assert scores(model).equal(on)
        made_on = [new, copy.deepcopy(new), pickle.loads(cloudpickle.dumps(new))]
    for model in (old, copied, *made_on):
        assert scores(model).equal(off)
    assert b"coati_ext." not in pickle.dumps(new)  # a stamp is plain data


@pytest.mark.skipif(OLD_TORCH, reason="torch.compile came with torch 2")
@pytest.mark.enough("G1", "G4", why="thin functions over one that all of them share")
@pytest.mark.parametrize("make", [tiny_reward_model, tiny_critic])
@pytest.mark.parametrize("level", ["off", "auto"])
def test_a_compiled_model_follows_the_flag(upstream, make, level):
    """Compiled and run before enable(), on, off, and on again: what the plain model gives."""
    told = real if level == "auto" else lambda found: found
    model = make("gpt2")
    compiled = torch.compile(model, backend="eager")
    off = scores(model)
    assert not differ(scores(compiled), off)
    for _ in range(2):
        with coati_ext.applied({"token_saving": {"level": level}}) as report:
            assert notes_of(report) == []
            on = scores(model)
            assert differ(on, off)
            assert told(scores(compiled)).sub(told(on)).abs().max() <= ATOL
            whole = torch.compile(model, backend="eager", fullgraph=True)
            assert told(scores(whole)).sub(told(on)).abs().max() <= ATOL
        assert scores(compiled).sub(off).abs().max() <= ATOL


@pytest.mark.parametrize("wrap", ["bound method", "function"])
def test_an_instance_with_a_forward_of_its_own(upstream, wrap):
    """Wrapped with the patches on it is patched; wrapped before, it is upstream's, and named."""
    model, plain = tiny_reward_model("gpt2"), tiny_reward_model("gpt2")
    off = scores(plain)
    given_a_forward(model, wrap)
    with coati_ext.applied() as report:
        assert differ(scores(plain), off)
        assert scores(model).equal(off)
        (note,) = notes_of(report)
        assert note.startswith(f"1 of {type(model).__module__}.{type(model).__name__} had forward")
        assert "call enable() first" in note
        now = coati_ext.status()
        # Notes of how models were computed come as they are.
        assert dataclasses.replace(now, notes=report.notes) == report
        assert notes_of(now) == [note]
        del model.forward
        assert scores(model).equal(scores(plain))
        given_a_forward(model, wrap)
        assert scores(model).equal(scores(plain))
    with pytest.raises(RuntimeError, match=r"call coati_ext.enable\(\) first"):
        scores(model)  # loud, where silence would score in the form that was switched off


def test_bound_methods_kept_from_before_are_named_by_class_and_number(upstream):
    first, second, third = (tiny_reward_model("gpt2", seed=seed) for seed in range(3))
    kept = {"a": first.forward, "b": [first.forward], "c": functools.partial(second.forward, IDS)}
    with coati_ext.applied() as report:
        (note,) = notes_of(report)
        assert note.startswith("2 of ")
        assert differ(scores(kept["a"]), scores(first))
    del kept, third
    with coati_ext.applied() as report:
        assert notes_of(report) == []


def test_nobody_is_looked_for_where_coati_comes_later(upstream, monkeypatch):
    def fail():
        raise AssertionError("looked at every object")

    monkeypatch.setattr(unreached.gc, "get_objects", fail)
    # Without what changes colossalai, which an earlier test may have imported.
    coati_ext.enable({"provenance": {"enabled": False}})
    import coati.models

    assert coati.models.RewardModel.forward.__module__.startswith("coati_ext.")


READER = """
import json, pickle, sys
import torch
if sys.argv[1:] == ["on"]:
    import coati_ext
    coati_ext.enable()
found = {}
for name, content in torch.load("pickles.pt").items():
    try:
        with torch.no_grad():
            ids, mask = torch.load("rows.pt")
            found[name] = pickle.loads(content)(ids, attention_mask=mask).tolist()
    except RuntimeError as error:
        found[name] = str(error)
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.generations("G1", "G4")
def test_pickles_are_patched_where_they_are_loaded(python):
    """Made before enable() or after, a model scores as the process that loads it says."""
    model = tiny_reward_model("gpt2")
    off = scores(model)
    scope = {"__name__": "__main__", "RewardModel": type(model)}  # as in a user's own script
    exec(
        "class Mine(RewardModel):\n"
        "    def forward(self, *args, **kwargs):\n"
        "        return 2 * super().forward(*args, **kwargs)\n",
        scope,
    )
    mine = copy.copy(model)
    mine.__class__ = scope["Mine"]

    def pickled(when):
        return {
            f"model, {when}": pickle.dumps(model),
            f"method, {when}": pickle.dumps(model.forward),
            f"model, cloud, {when}": cloudpickle.dumps(model),
            f"method, cloud, {when}": cloudpickle.dumps(model.forward),
            f"subclass, cloud, {when}": cloudpickle.dumps(mine),
        }

    content = pickled("before")
    with coati_ext.applied():
        on = scores(model)
        content.update(pickled("after"))
    torch.save(content, "pickles.pt")
    torch.save((IDS, MASK), "rows.pt")
    assert differ(on, off)

    for flag, expected in (("off", off), ("on", on)):
        found = json.loads(python.warm("-c", READER, flag).stdout.splitlines()[-1])
        if flag == "off":
            # It names the function and not the slot, as every function in a cloudpickle.
            loud = found.pop("method, cloud, after")
            assert "call coati_ext.enable() first" in loud
        for name, values in found.items():
            factor = 2 if name.startswith("subclass") else 1
            assert torch.tensor(values).sub(factor * expected).abs().max() <= ATOL, (flag, name)
        assert len(found) == 10 - (flag == "off")
