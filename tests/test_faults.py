"""Exceptions at every line of a change: patched or not, never in between, and it can go on."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import random
import sys
from pathlib import Path

import pytest

import coati_ext
from coati_ext import active, switch
from coati_ext.errors import CoatiExtError
from coati_ext.launch import imports, rank_check
from coati_ext.patching import apply
from helpers.upstreams import forget_coati

MODULES = ("coati.models", "coati.dataset", "coati.trainer", "coati.experience_maker")
TRACED = {switch.__file__, apply.__file__, active.__file__, imports.__file__, rank_check.__file__}
KINDS = (KeyboardInterrupt, SystemExit, RuntimeError, ImportError, MemoryError)
WRITING = ("write_all", "stop", "give_back")
SAMPLE, FULL = 2, 120


class Stepper:
    """Counts the lines of ours that run in a block, and raises at one of them."""

    def __init__(self, at=None, error=KeyboardInterrupt):
        self.at, self.error = at, error
        self.lines = []

    def __enter__(self):
        sys.settrace(self._call)
        return self

    def __exit__(self, *_):
        sys.settrace(None)

    def _call(self, frame, event, arg):
        code = frame.f_code
        return self._line if code.co_filename in TRACED and code.co_name[0] != "<" else None

    def _line(self, frame, event, arg):
        place = Path(frame.f_code.co_filename).name, frame.f_code.co_name, frame.f_lineno, event
        self.lines.append(place)
        if len(self.lines) - 1 == self.at:
            raise self.error("injected")
        return self._line


def points(lines, full, seed):
    """Where to inject: at lines of any write, and at each other line once."""
    places = {}
    for number, place in enumerate(lines):
        places.setdefault(place, []).append(number)
    rng = random.Random(seed)
    kept = [
        found if place[1] in WRITING else [rng.choice(found)] for place, found in places.items()
    ]
    every = list(itertools.chain(*kept))
    return sorted(rng.sample(every, min(len(every), FULL if full else SAMPLE)))


def import_all(swallow=False):
    for name in MODULES:
        if swallow:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        else:
            importlib.import_module(name)


def slots(plan):
    """Each target in an imported module: what it holds, and whether that is patched."""
    found = {}
    for step in plan.steps:
        module = sys.modules.get(step.site.module)
        if step.state != "pending" or module is None:
            continue
        *owners, name = step.site.qualname.split(".")
        owner = module
        for part in owners:
            owner = vars(owner)[part]
        held = vars(owner).get(name)
        if step.site.mode == "extend":
            ours = held is not None
        elif step.site.mode == "replace":
            ours = held.__module__.startswith("coati_ext.patches")
        else:
            code = getattr(held, "__code__", None)
            ours = code is not None and code.co_filename == apply.__file__
        found[step.site.target] = ours
    return found


def reality(plan):
    """``on``, ``off`` or ``mixed``; ``none`` where no module of the plan is imported."""
    return {frozenset(): "none", frozenset([True]): "on", frozenset([False]): "off"}.get(
        frozenset(slots(plan).values()), "mixed"
    )


def lies(plan):
    """The targets about which ``status()`` says what is not so."""
    held = slots(plan)
    return [
        row.target
        for row in coati_ext.status().patches
        if row.target in held and (row.state == "applied") != held[row.target]
    ]


def blocked():
    """Whether no other module of coati can be imported."""
    known = {name: sys.modules.pop(name) for name in list(sys.modules) if name == "coati.trainer"}
    try:
        importlib.import_module("coati.trainer")
    except ImportError:
        return True
    else:
        return False
    finally:
        sys.modules.update(known)


def wrong_after(plan, number):
    """What is wrong after a fault, and when the switch is used again; empty if nothing is."""
    wrong = []
    now = reality(plan)
    if lies(plan):
        wrong.append(f"status() is wrong about {lies(plan)}")
    if now == "mixed" and not blocked():
        wrong.append("half-patched, and coati can be imported")
    if number % 2:
        try:
            coati_ext.enable()
            import_all()
        except CoatiExtError:
            if reality(plan) not in ("off", "none"):
                wrong.append(f"enable() raises, and the patches are {reality(plan)}")
        else:
            if reality(plan) != "on" or lies(plan):
                wrong.append(f"enable() returns, and the patches are {reality(plan)}")
    try:
        coati_ext.disable()
        import_all()
    except Exception as error:
        wrong.append(f"disable() does not work: {error!r}")
    if reality(plan) != "off":
        wrong.append(f"disable() returns, and the patches are {reality(plan)}")
    if imports._importlib._find_spec is not imports._find_spec:
        wrong.append("disable() leaves the imports under guard")
    if active._choices or active._observers:
        wrong.append("disable() leaves the hooks in force")
    return wrong


@contextlib.contextmanager
def as_planned(monkeypatch):
    """One plan for all: making it changes nothing, and takes most of the time."""
    plan = switch.make_plan()
    with monkeypatch.context() as context:
        context.setattr(switch, "make_plan", lambda config=None: plan)
        context.setattr(switch, "captured", lambda ledger: ())  # looks at every object, and only so
        yield plan


# Each scenario prepares, and returns what is interrupted.


def enabling():
    import_all()
    return coati_ext.enable


def disabling():
    import_all()
    coati_ext.enable()
    return coati_ext.disable


def importing():
    forget_coati()
    coati_ext.enable()
    return import_all


def importing_and_swallowing():
    forget_coati()
    coati_ext.enable()
    return lambda: import_all(swallow=True)


def reloading():
    import_all()
    coati_ext.enable()
    module = sys.modules["coati.models.loss"]
    return lambda: importlib.reload(module)


SCENARIOS = (enabling, disabling, importing, importing_and_swallowing, reloading)


def attacked(scenario, plan, number, injected):
    """What is wrong after a scenario in which something is injected."""
    action = scenario()
    with contextlib.suppress(KeyboardInterrupt, SystemExit, Exception), injected:
        action()
    if scenario in (importing, importing_and_swallowing):
        for _ in range(2):  # importing again
            with contextlib.suppress(ImportError):
                import_all(swallow=scenario is importing_and_swallowing)
    wrong = wrong_after(plan, number)
    if wrong:
        with contextlib.suppress(Exception):
            coati_ext.disable()
        forget_coati()
    return wrong


def dry_run(scenario):
    """The lines of a scenario in which nothing is injected."""
    action = scenario()
    with Stepper() as stepper:
        action()
    coati_ext.disable()
    return stepper.lines


@pytest.mark.attack
@pytest.mark.once(why="it is about the engine, which knows neither torch nor transformers")
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_a_fault_at_any_line_leaves_nothing_half_patched(
    upstream, monkeypatch, full, tally, scenario
):
    kinds = itertools.cycle(KINDS)
    through = []
    with as_planned(monkeypatch) as plan:
        lines = dry_run(scenario)
        where = points(lines, full, f"{scenario.__name__} {upstream.generation}")
        for number, at in enumerate(where):
            error = next(kinds)
            wrong = attacked(scenario, plan, number, Stepper(at, error))
            if wrong:
                through.append(f"{error.__name__} at {lines[at]}: {wrong}")
    tally("faults at a line", len(where), len(through))
    assert not through, "\n".join(through)


@contextlib.contextmanager
def two_faults(monkeypatch, first, second, after):
    """Raise at one write, and again at, or just after, one of those that take it back."""
    writes, backs = itertools.count(), itertools.count()
    plain_write, plain_back = apply.Write.do, apply.give_back

    def do(write):
        if next(writes) == first:
            raise RuntimeError("first")
        plain_write(write)

    def back(*arguments):
        number = next(backs)
        if number == second and not after:
            raise KeyboardInterrupt
        plain_back(*arguments)
        if number == second:
            raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(apply.Write, "do", do)
        context.setattr(switch, "give_back", back)
        yield


@pytest.mark.attack
@pytest.mark.once(why="it is about the engine, which knows neither torch nor transformers")
@pytest.mark.parametrize(
    "scenario", [enabling, importing, disabling], ids=lambda scenario: scenario.__name__
)
def test_a_second_fault_while_the_first_is_mended(upstream, monkeypatch, full, tally, scenario):
    through = []
    with as_planned(monkeypatch) as plan:
        import_all()
        coati_ext.enable()
        total = len(switch._session.ledger)
        coati_ext.disable()
        pairs = [(first, second) for first in range(1, total) for second in range(first)]
        if scenario is disabling:
            pairs = [(total, second) for second in range(total)]
        cases = list(itertools.product(pairs, (False, True)))
        rng = random.Random(f"{scenario.__name__} {upstream.generation}")
        cases = rng.sample(cases, min(len(cases), 30 if full else 1))
        for number, ((first, second), after) in enumerate(cases):
            injected = two_faults(monkeypatch, first, second, after)
            wrong = attacked(scenario, plan, number, injected)
            if wrong:
                through.append(f"writes {first} and {second}, {after}: {wrong}")
    tally("faults in a row", len(cases), len(through))
    assert not through, "\n".join(through)
