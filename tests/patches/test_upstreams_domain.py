"""Whatever upstream's losses, utilities and models take, ours take, and give the same numbers.

The grid has every shape that broadcasts or nearly does, dtypes, masks of all kinds, numbers in
place of tensors, and extreme numbers. What upstream refuses, or makes no finite number of, counts
as untried. Where ours differs on purpose, the subject's ``meant`` has the reason.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from functools import partial
from importlib import import_module
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional

import pytest
import torch
from torch import Tensor

import coati_ext
from coati_ext.testing import cpu_only, tiny_critic, tiny_reward_model
from coati_ext.testing.padding import pad_rows
from coati_ext.testing.training import has_strategies
from helpers.upstreams import Upstream

CLOSE = 1e-5  # in float32, relative to numbers over 1
SAMPLE = 60  # about as many cases of a subject where not all are run
SHAPES = [(), (1,), (2,), (3,), (2, 1), (1, 3), (2, 3), (4, 2, 3)]
NUMBER = None  # in place of a shape: a Python number, or no mask
HALVES = (torch.bfloat16, torch.float16)
NO_REASON = lambda facts: None  # noqa: E731

Facts = Dict[str, Any]


class Draw(random.Random):
    """Draws arguments, and combinations: all of them, or a sample."""

    full = False

    def of(self, *axes: Any) -> Iterator[Any]:
        combinations = list(itertools.product(*axes))
        if not self.full and len(combinations) > SAMPLE:
            combinations = self.sample(combinations, SAMPLE)
        return iter(combinations)

    def dtype(self) -> torch.dtype:
        """Mostly float32."""
        return self.choice([torch.float32] * 5 + [torch.float64, *HALVES])

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.randrange(2**31))

    def tensor(self, shape: Any, dtype: Any = torch.float32, extreme: bool = False) -> Any:
        if shape is NUMBER:
            return float(torch.randn((), generator=self.generator()))
        found = torch.randn(shape, generator=self.generator()) * self.choice([0.2, 2.0])
        if extreme and found.numel():
            found.view(-1)[0] = self.choice([85.0, -85.0, 200.0, -200.0, float("inf")])
        return found.to(dtype)

    def mask(self, shape: Any) -> Optional[Tensor]:
        if shape is NUMBER:
            return None
        found = torch.rand(shape, generator=self.generator()) < self.choice([0.7, 0.7, 1.0, 0.0])
        kind = self.choice([torch.bool, torch.int64, torch.float32, "fractions"])
        if kind == "fractions":
            return found * torch.rand(shape, generator=self.generator())
        return found.to(kind)


class Case(NamedTuple):
    given: Dict[str, Any]
    facts: Facts
    """What decides whether a difference is meant."""


class Subject(NamedTuple):
    name: str
    upstreams: Callable[..., Any]
    ours: Callable[..., Any]
    cases: Callable[[Draw], Iterator[Case]]
    meant: Callable[[Facts], Optional[str]] = NO_REASON
    compared: Callable[[Any], Any] = lambda result: result


# --- comparing ------------------------------------------------------------------------------------


def outcome(function: Callable[..., Any], given: Dict[str, Any]) -> Any:
    """What a function returns, or its exception."""
    try:
        return function(**given)
    except Exception as error:
        return error


def copied(item: Any, half_as: Optional[torch.dtype] = None) -> Any:
    """Arguments anew, those of half precision in another dtype."""
    if isinstance(item, dict):
        return {key: copied(value, half_as) for key, value in item.items()}
    if not isinstance(item, Tensor):
        return item
    dtype = half_as if half_as is not None and item.dtype in HALVES else item.dtype
    return item.detach().to(dtype, copy=True).requires_grad_(item.requires_grad)


def is_finite(result: Any) -> bool:
    return isinstance(result, Tensor) and bool(result.isfinite().all())


def same(expected: Any, got: Any, close: float = CLOSE) -> bool:
    if not isinstance(got, Tensor) or got.shape != expected.shape:
        return False
    scale = expected.double().abs().clamp(min=1)
    return bool((got.double().sub(expected.double()).abs() <= close * scale).all())


def slope(result: Tensor, given: Dict[str, Any]) -> Optional[Tensor]:
    """The gradient of the first argument that has one, if there is a finite one."""
    first = next((it for it in given.values() if getattr(it, "requires_grad", False)), None)
    if first is None or not result.requires_grad:
        return None
    with torch.autograd.set_detect_anomaly(False):  # upstream's ORPO trainer leaves it on
        (found,) = torch.autograd.grad(result.sum(), first, allow_unused=True)
    return found if is_finite(found) else None


def difference(subject: Subject, case: Case) -> Optional[str]:
    """What is not as upstream's, "" if nothing is, ``None`` if upstream does not take the case.

    With half precision, what upstream makes of the same numbers in float32 is as good.
    """
    if isinstance(outcome(subject.upstreams, copied(case.given)), Exception):
        return None
    told = []
    for dtype in (torch.float32, None) if case.facts["half"] else (None,):
        theirs, mine = copied(case.given, dtype), copied(case.given)
        expected = subject.compared(outcome(subject.upstreams, theirs))
        if not is_finite(expected):
            return None
        result = outcome(subject.ours, mine)
        if isinstance(result, Exception):
            return f"{type(result).__name__}: {result}"
        got = subject.compared(result)
        before, after = slope(expected, theirs), slope(got, mine)
        close = 2e-2 if case.facts["half"] else CLOSE  # a gradient has the dtype of its argument
        if not same(expected, got):
            told.append(f"{got} instead of {expected}")
        elif before is not None and not same(before, after, close):
            told.append(f"a gradient of {after} instead of {before}")
        else:
            return ""
    return told[0]


# --- the losses -----------------------------------------------------------------------------------


def three_and_a_mask(names: List[str], draw: Draw) -> Iterator[Case]:
    """Three tensors of which the later may be numbers, and a mask or none."""
    more = [NUMBER, *SHAPES]
    for shapes in draw.of(SHAPES, more, more, more):
        dtype, extreme = draw.dtype(), draw.random() < 0.15
        given = [
            draw.tensor(shapes[0], dtype, extreme).requires_grad_(),
            draw.tensor(shapes[1], dtype),
            draw.tensor(shapes[2], draw.choice([dtype, torch.float32])),
            draw.mask(shapes[3]),
        ]
        zeros = given[3] is not None and bool((given[3] == 0).any())
        facts = {
            "half": dtype in HALVES,
            "extreme": extreme,
            "values masked": zeros and shapes[3] == shapes[0],
        }
        yield Case(dict(zip(names, given)), facts)


def pairs(draw: Draw) -> Iterator[Case]:
    for shape, other, _ in draw.of(SHAPES, [NUMBER, *SHAPES], range(4)):
        dtypes = [draw.dtype(), draw.dtype()]
        chosen = draw.tensor(shape, dtypes[0]).requires_grad_()
        given = {"chosen_reward": chosen, "reject_reward": draw.tensor(other, dtypes[1])}
        yield Case(given, {"half": bool({*dtypes} & {*HALVES})})


def extreme_ratios(facts: Facts) -> Optional[str]:
    return "a log-ratio is held to 80, for e^80 is finite (D28)" if facts["extreme"] else None


def masked_values(facts: Facts) -> Optional[str]:
    return "upstream ignores a mask of values (D28)" if facts["values masked"] else None


# --- the utilities --------------------------------------------------------------------------------


def rewards(draw: Draw) -> Iterator[Case]:
    """Scores and log-probabilities, and masks whose real actions come first."""
    shapes = [(2, 3), (2, 1), (1, 3), (3, 3), (4, 2, 3)]
    scores = [NUMBER, (), (1,), (2,), (3,), (2, 1), (3, 1), (2, 3)]
    for own, base, score, masked in draw.of(shapes, shapes, scores, [NUMBER, *shapes]):
        given = {
            "r": draw.tensor(score) * 3,
            "kl_coef": draw.choice([0.0, 0.1, 1.0]),
            "log_probs": draw.tensor(own),
            "log_probs_base": draw.tensor(base),
            "action_mask": None,
        }
        empty = False
        if masked is not NUMBER:
            lowest = draw.choice([0, 1, 1])
            counts = [[draw.randint(lowest, masked[-1])] for _ in range(masked[-2])]
            actions = (torch.arange(masked[-1]) < torch.tensor(counts)).expand(masked)
            empty = not bool(actions.any(dim=-1).all())
            given["action_mask"] = actions.to(draw.choice([torch.bool, torch.int64]))
        ratios = outcome(torch.sub, {"input": given["log_probs"], "other": given["log_probs_base"]})
        unlikely = isinstance(ratios, Tensor) and float(ratios.min()) < -2.6
        yield Case(given, {"half": False, "empty": empty, "unlikely": unlikely})


def penalised(facts: Facts) -> Optional[str]:
    if facts["empty"]:
        return "a row without an action has no reward"
    return "a k3 estimate is held to 10 nats (D14)" if facts["unlikely"] else None


def outputs(draw: Draw) -> Iterator[Case]:
    """Logits of as many rows and columns as the sequences have, of more and of fewer."""
    counts = range(-2, 8)
    for rows, more, columns, beyond, actions in draw.of(
        (1, 2), (0, 1), (1, 2, 6), (-1, 0, 2), counts
    ):
        dtype = draw.dtype()
        given = {
            "logits": draw.tensor((rows + more, columns + beyond, 7), dtype),
            "sequences": torch.randint(7, (rows, columns), generator=draw.generator()),
            "num_actions": actions,
        }
        yield Case(given, {"half": dtype in HALVES})


def items(draw: Draw) -> Iterator[Case]:
    """Rows of one rollout, whose fields are of tokens, of actions or one number."""
    try:
        buffers = import_module("coati.experience_buffer.utils")
    except ModuleNotFoundError:  # before v0.3.2
        buffers = import_module("coati.replay_buffer.utils")
    names = [field.name for field in dataclasses.fields(buffers.BufferItem)]
    for rows, columns, actions, whole in draw.of((1, 3), (4, 7), (1, 3), (False, True)):
        made = []
        for _ in range(rows):
            given = dict.fromkeys(names)
            for name in given:
                given[name] = draw.tensor(() if whole else (actions,))
            given["action_log_probs"] = draw.tensor((actions,))
            given["action_mask"] = torch.arange(actions) < draw.randint(1, actions)
            given["sequences"] = torch.arange(columns)
            given["attention_mask"] = (torch.arange(columns) > 0).long()
            made.append(buffers.BufferItem(**given))
        yield Case({"items": made}, {"half": False})


def flattened(experience: Any) -> Any:
    fields = [getattr(experience, field.name) for field in dataclasses.fields(experience)]
    return torch.cat([item.double().flatten() for item in fields])


# --- the models -----------------------------------------------------------------------------------


def padded_rows(draw: Draw) -> Iterator[Case]:
    """Right-padded, where upstream from G2 on reads the right column."""
    rows = [[1, 9, 8, 7, 12, 2], [1, 5, 2], [1, 14, 6, 33]]
    kinds = (None, torch.bool, torch.int64, torch.int32, torch.float32, torch.uint8)
    for count, dtype, kind in draw.of((1, 2, 3), (torch.int64, torch.int32), kinds):
        given = rows[:count] if kind is not None else rows[:1] * count
        ids, mask = pad_rows(given, pad_token_id=0, side="right")
        named = "sequences" if has_strategies() else "input_ids"
        mask = None if kind is None else mask.to(kind)
        yield Case({named: ids.to(dtype), "attention_mask": mask}, {"half": False})


# --- all of them ----------------------------------------------------------------------------------


def subjects(generation: str) -> Iterator[Subject]:
    """The patched functions beside upstream's, which are taken here, before the patches are on."""
    losses, utils = import_module("coati.models.loss"), import_module("coati.models.utils")
    whole = generation in ("G1", "G2")
    for name in ("LogSigLoss", "LogExpLoss"):
        yield Subject(name, *forward_of(getattr(losses, name)()), pairs)
    policy = ["log_probs", "old_log_probs", "advantages", "action_mask"]
    yield Subject(
        "PolicyLoss",
        *forward_of(losses.PolicyLoss()),
        lambda draw: three_and_a_mask(policy, draw),
        extreme_ratios,
        lambda result: result[0] if isinstance(result, tuple) else result,
    )
    values = ["values", "old_values", "reward" if whole else "advantage", "action_mask"]
    yield Subject(
        "ValueLoss",
        *forward_of(losses.ValueLoss()),
        lambda draw: three_and_a_mask(values, draw),
        masked_values if whole else NO_REASON,
    )
    old_kl = hasattr(utils, "compute_approx_kl")  # before v0.3.1, with the ratio upside down
    yield Subject(
        "compute_reward",
        *function_in(utils, "compute_reward"),
        rewards,
        (lambda facts: "the sign of the KL (#4338)") if old_kl else penalised,
        lambda result: result[0] if isinstance(result, tuple) else result,
    )
    if hasattr(utils, "calc_action_log_probs"):  # before v0.3.1 the actor has it in its forward
        calls = function_in(utils, "calc_action_log_probs")
        if generation == "G1":
            calls = [
                lambda logits, sequences, num_actions, call=call: call(
                    {"logits": logits}, sequences, num_actions
                )
                for call in calls
            ]
        yield Subject("calc_action_log_probs", *calls, outputs)
    try:
        buffers = import_module("coati.experience_buffer.utils")
    except ModuleNotFoundError:  # before v0.3.2
        buffers = import_module("coati.replay_buffer.utils")
    batch = function_in(buffers, "make_experience_batch")
    yield Subject("make_experience_batch", *batch, items, compared=flattened)
    shape = lambda result: torch.tensor(result.shape)  # noqa: E731
    plain = lambda result: result  # noqa: E731
    for name, make in (("RewardModel", tiny_reward_model), ("Critic", tiny_critic)):
        compared = shape if generation == "G1" or (name == "Critic" and not whole) else plain
        calls = forward_of(make("gpt2"))
        yield Subject(f"{name}.forward", *calls, padded_rows, compared=compared)


def function_in(home: Any, name: str) -> List[Callable[..., Any]]:
    before = vars(home)[name]
    return [before, lambda *rest, **given: vars(home)[name](*rest, **given)]


def forward_of(module: Any) -> List[Callable[..., Any]]:
    owner = next(each for each in type(module).__mro__ if "forward" in vars(each))
    return [partial(call, module) for call in function_in(owner, "forward")]


@pytest.mark.attack
@pytest.mark.enough("G2", "G4", why="what G1 and G3 take is what these take")
def test_what_upstream_takes_we_take_and_the_number_is_the_same(
    upstream: Upstream, full: bool, tally: Callable[[str, int, int], None]
) -> None:
    # Upstream's G3 and G4 pay the score for every token.
    late = upstream.generation in ("G3", "G4")
    settings = {"rollout": {"reward_placement": "every_token"}} if late else {}
    with cpu_only():
        found = list(subjects(upstream.generation))
        with coati_ext.applied(settings):
            for subject in found:
                wrong, tried = [], 0
                draw = Draw(subject.name)
                draw.full = full
                for case in subject.cases(draw):
                    told = difference(subject, case)
                    tried += told is not None
                    if told and not subject.meant(case.facts):
                        wrong.append(f"{described(case.given)}: {told}")
                tally(f"{subject.name}, what upstream takes", tried, len(wrong))
                assert tried
                assert not wrong, "\n".join(
                    [f"{subject.name}: {len(wrong)} of {tried}", *wrong[:8]]
                )


def described(given: Dict[str, Any]) -> str:
    def told(item: Any) -> str:
        if not isinstance(item, Tensor):
            return repr(item) if not isinstance(item, list) else f"{len(item)} items"
        return f"{str(item.dtype)[6:]} {tuple(item.shape)}"

    return ", ".join(f"{name} {told(item)}" for name, item in given.items())
