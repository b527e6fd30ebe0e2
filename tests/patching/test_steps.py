"""Planning: known code fits, right code is left alone, unknown code is refused with the reason."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

import coati_ext
from coati_ext.errors import CoatiNotFoundError, RefusedError, UnknownNameError
from coati_ext.patching.patch import GENERATIONS, Patch, Site
from coati_ext.patching.source import Coati, find_coati, function_in, generation_of
from coati_ext.patching.steps import in_order, plan_steps, refusal
from coati_ext.plan import make_plan

FORWARD = "RewardModel.forward"


def test_the_generation_is_told_from_structure(upstream):
    assert generation_of(upstream.package) == upstream.generation
    assert find_coati() == Coati(upstream.package, upstream.generation)


def test_everything_fits_or_is_right_already(upstream):
    plan = make_plan()
    assert {step.state for step in plan.steps} <= {"pending", "already upstream"}
    assert {step.patch for step in plan.steps} == {
        *("eos_pooling", "left_padding", "provenance", "rollout", "stable_losses"),
        *(("distributed",) if (upstream.package / "distributed").is_dir() else ()),
    }
    plan.check()


def test_upstream_code_that_is_right_is_reported_as_such(upstream):
    states = {step.site.target: step.state for step in make_plan().steps}
    right = upstream.generation in ("G3", "G4")
    expected = "already upstream" if right else "pending"
    assert states["coati.models.loss:LogSigLoss.forward"] == expected


@pytest.fixture
def edited(upstream, tmp_path, monkeypatch):
    """A copy of the coati under test whose RewardModel.forward can be edited."""
    from helpers.upstreams import importable

    copy = tmp_path / "edited"
    shutil.copytree(str(upstream.package), str(copy / "coati"))
    name = "base/reward_model.py" if upstream.generation in ("G1", "G2") else "reward_model.py"
    file = copy / "coati" / "models" / name

    def edit(change) -> Path:
        """Let `change` work on the function's text."""
        text = file.read_text()
        function = function_in(file, FORWARD).text
        assert change(function) != function
        file.write_text(text.replace(function, change(function)))
        return file

    with importable(copy):
        yield edit


def refused(**config):
    steps = make_plan(config).steps
    return next((step for step in steps if step.state == "refused"), None), str(refusal(steps))


def test_an_edited_function_is_refused_naming_file_line_and_difference(edited):
    file = edit_body(edited)
    step, told = refused()
    assert step.patch == "eos_pooling"
    assert str(file) in told
    assert FORWARD in told
    assert "`print('mine')`" in told
    assert step.fingerprint in told
    assert 'policy = "structural"' in told
    assert "COATI_EXT_SET=eos_pooling.enabled=false" in told
    with pytest.raises(RefusedError):
        make_plan().check()
    states = {row.target: row.state for row in coati_ext.status().patches}
    assert states.pop(step.site.target) == "refused"
    assert set(states.values()) == {"off"}


def edit_body(edited, statement="print('mine')"):
    """Add a statement at the end of the signature, before the first one of the body."""
    return edited(
        lambda text: re.sub(
            r"(\n    \) ->.*:|-> torch.Tensor:)\n", rf"\1\n        {statement}\n", text, count=1
        )
    )


def test_the_structural_policy_lets_an_edited_body_through_and_says_so(edited):
    edit_body(edited)
    step = next(s for s in make_plan({"policy": "structural"}).steps if s.patch == "eos_pooling")
    assert step.state == "pending"
    told = (
        r"fits in structure; your edit at line (\d+) will be overwritten: differs from upstream's "
    )
    assert re.match(told + r".* in line \1 `print", step.reason)


def test_the_structural_policy_refuses_another_signature(edited):
    edited(lambda text: text.replace("attention_mask", "attn"))
    step, told = refused(policy="structural")
    assert step.patch == "eos_pooling"
    assert "the signature is none of the released ones" in told


def test_the_structural_policy_refuses_a_body_without_what_the_patch_uses(edited):
    edited(lambda text: text.replace("self.value_head", "self.score_head"))
    _, told = refused(policy="structural")
    assert "the body does not use self.value_head" in told


def test_formatting_is_no_edit(edited):
    edit_body(edited, "# mine")
    assert refused()[0] is None


def test_a_removed_function_is_refused(edited):
    edited(lambda text: text.replace("def forward(", "def forwards("))
    assert "coati.models" in refused()[1]
    assert "does not exist in the coati at" in refused()[1]


def test_a_file_that_does_not_parse_is_refused(edited):
    file = edited(lambda text: text.replace("def forward(", "def forward(("))
    assert f"cannot read {file}" in refused()[1]


def test_a_patch_that_is_off_is_not_planned(edited):
    edit_body(edited)
    assert refused(eos_pooling={"enabled": False})[0] is None


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (["coati/__init__.py"], "is no known generation of ColossalAI Chat"),
        (["coati.py"], "is a single file, not ColossalAI Chat"),
        (
            ["chatgpt/__init__.py", "chatgpt/models/base/reward_model.py"],
            "its predecessor chatgpt is, at",
        ),
        ([], "coati is not importable by"),
    ],
    ids=["another package", "a module", "chatgpt", "none"],
)
def test_what_is_not_coati_is_told_apart(tmp_path, monkeypatch, files, told):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(CoatiNotFoundError, match=told):
        find_coati()
    plan = make_plan()
    assert plan.steps == ()
    with pytest.raises(CoatiNotFoundError):
        plan.check()


def patch(name, target="coati.models.loss:LogSigLoss.forward", mode="wrap", after=()):
    site = Site(target, "ours:f", GENERATIONS, mode=mode, fits={"x": "0"})
    return Patch(name, "", (site,), after=after)


def test_two_patches_on_one_target_need_an_order(upstream):
    coati = find_coati()
    with pytest.raises(RefusedError, match="patches a and b both change"):
        plan_steps([patch("a"), patch("b")], coati, "strict")
    plan_steps([patch("a"), patch("b", after=("a",))], coati, "strict")
    with pytest.raises(RefusedError, match="only a wrap can come after another patch"):
        plan_steps([patch("a"), patch("b", mode="replace", after=("a",))], coati, "strict")


def test_order_is_by_after_then_by_name():
    patches = {p.name: p for p in [patch("a", after=("c",)), patch("b"), patch("c", after=("b",))]}
    assert [p.name for p in in_order(patches)] == ["b", "c", "a"]


def test_an_order_that_cannot_be_is_refused():
    with pytest.raises(UnknownNameError, match="a -> b -> a"):
        in_order({p.name: p for p in [patch("a", after=("b",)), patch("b", after=("a",))]})
    with pytest.raises(UnknownNameError, match="comes after eos, which does not exist"):
        in_order({"a": patch("a", after=("eos",))})


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"target": "coati.models"}, "'coati.models' is not of the form"),
        ({"new": "ours"}, "'ours' is not of the form"),
        ({"mode": "swap"}, "mode 'swap' of coati.m:f"),
        ({"generations": ("G5",)}, "G5"),
        ({"generations": ()}, "expected some of"),
    ],
)
def test_a_wrong_site_cannot_be_declared(wrong, told):
    right = {"target": "coati.m:f", "new": "ours:f", "generations": ("G1",)}
    with pytest.raises(ValueError, match=told):
        Site(**{**right, **wrong})


def test_a_wrong_patch_cannot_be_declared():
    with pytest.raises(ValueError, match="not an identifier"):
        patch("two words")


SMALL = """def f(x):
    first(x)
    second(x)
    third(x)
    return x


class C:
    pass
"""


@pytest.fixture
def small(tmp_path):
    """A coati of one module."""
    (tmp_path / "coati").mkdir()
    (tmp_path / "coati" / "small.py").write_text(SMALL)
    return Coati(tmp_path / "coati", "G1")


def step_for(coati, known, *, policy="strict", verdict="fits", name="mine", target="f", **given):
    """The one step of a patch that knows f as this text."""
    folder = coati.root / name
    folder.mkdir()
    (folder / "known.py").write_text(known)
    fingerprint = function_in(folder / "known.py", "f").fingerprint
    known = {verdict: {"v1": fingerprint}}
    site = Site(f"coati.small:{target}", "ours:f", GENERATIONS, **known, **given)
    (step,) = plan_steps([Patch(name, "", (site,))], coati, policy)
    return step


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("", "in line 4 `third(x)` (fingerprint"),
        ("third(x)\n    fourth(x)", "in 1 statement of upstream's missing (fingerprint"),
        ("third(x)\n    fourth(x)\n    fifth(x)", "in 2 statements of upstream's missing (finger"),
        ("third(x + 1)", "in line 4 `third(x)` (fingerprint"),
    ],
)
def test_a_refusal_tells_what_is_new_and_how_much_is_missing_and_nothing_else(small, more, told):
    step = step_for(small, SMALL.replace("third(x)", more))
    assert step.state == "refused"
    assert f"differs from upstream's v1 {told}" in step.reason


@pytest.mark.parametrize("verdict", ["fits", "right"])
@pytest.mark.parametrize("change", ["first", "second", "third"])
def test_code_of_no_release_is_refused_whatever_its_fingerprint(small, verdict, change):
    """No order of fingerprints makes unknown code known."""
    step = step_for(small, SMALL.replace(change, "other"), verdict=verdict)
    assert step.state == "refused"
    state = "pending" if verdict == "fits" else "already upstream"
    assert step_for(small, SMALL, verdict=verdict, name="same").state == state


def test_words_from_a_file_are_as_good_as_words_in_code(small):
    """They are equal, and not the same objects."""
    policy, mode = json.loads('["structural", "extend"]')
    step = step_for(small, SMALL.replace("(x):", "(y):"), policy=policy)
    assert "policy structural does not let it through" in step.reason
    site = Site("coati.small:C.forward", "ours:f", GENERATIONS, mode=mode)
    (step,) = plan_steps([Patch("more", "", (site,))], small, "strict")
    assert step.reason == "C inherits forward"


def test_the_command_in_a_refusal_is_for_the_patch_told_first(small):
    steps = [step_for(small, SMALL.replace("first", "other"), name=name) for name in ("one", "two")]
    told = str(refusal(steps))
    assert told.index("one: ") < told.index("two: ")
    assert "`coati-ext diff one`" in told
    assert "COATI_EXT_SET=one.enabled=false,two.enabled=false" in told


@pytest.mark.parametrize("policy", ["strict", "structural"])
def test_a_site_that_knows_no_code_is_refused_and_told(upstream, policy):
    """As one is whose variants are all unreviewed."""
    site = Site("coati.models.loss:LogExpLoss.forward", "mine:forward", GENERATIONS)
    (step,) = plan_steps((Patch("mine", "", (site,)),), find_coati(), policy)
    assert (step.state, step.edit) == ("refused", None)
    assert "was never recorded" in step.reason
