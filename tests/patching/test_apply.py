"""Writing into imported modules: which names are written, and what counts as still ours."""

from __future__ import annotations

import functools
import importlib
import sys
import types
from pathlib import Path

import pytest
import wrapt

from coati_ext.errors import DisturbedError, RefusedError
from coati_ext.patching.apply import give_back, way_back, write_all, writes_for
from coati_ext.patching.patch import GENERATIONS, Patch, Site
from coati_ext.patching.source import Coati
from coati_ext.patching.steps import plan_steps
from helpers.upstreams import importable

HOME = """
import functools


def f(x):
    return x


def twice(function):
    @functools.wraps(function)
    def wrapper(*args):
        return 2 * function(*args)
    return wrapper


@twice
def g(x):
    return x


class Base:
    def forward(self, x):
        return x


class C(Base):
    pass
"""


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A coati of two modules, of which one has taken a function from the other."""
    package = tmp_path / "upstream" / "coati"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "home.py").write_text(HOME)
    (package / "other.py").write_text("from coati.home import f\n\nsame = f\n")
    ours = types.ModuleType("ours")
    ours.plus_one = lambda original, *args: original(*args) + 1
    ours.constant = lambda x: 100
    monkeypatch.setitem(sys.modules, "ours", ours)
    with importable(package.parent):
        importlib.import_module("coati.other")
        yield Coati(package, "G1")


def undo(ledger):
    for slot in way_back(ledger):
        give_back(*slot)


def apply(coati, *changes):
    """Apply patches of one site each, given as (target, new, mode)."""
    patches = []
    for number, (target, new, mode) in enumerate(changes):
        fits = {}
        if mode != "extend":
            fits["here"] = coati.function("coati.home", target).fingerprint
        site = Site(f"coati.home:{target}", f"ours:{new}", GENERATIONS, mode=mode, fits=fits)
        earlier = tuple(patch.name for patch in patches)
        patches.append(Patch(f"p{number}", "", (site,), after=earlier))
    steps = plan_steps(patches, coati, "strict")
    assert [step.state for step in steps] == ["pending"] * len(changes)
    ledger = []
    write_all(writes_for(steps, {"coati.home": sys.modules["coati.home"]}), ledger)
    return ledger


def test_a_name_is_rebound_in_coati_and_left_alone_in_the_users_modules(small, monkeypatch):
    import coati.home
    import coati.other

    original = coati.home.f
    mine = types.ModuleType("mine")
    mine.f = original
    coati_like = types.ModuleType("coati_tools.sub")
    coati_like.f = original
    monkeypatch.setitem(sys.modules, "mine", mine)
    monkeypatch.setitem(sys.modules, "coati_tools.sub", coati_like)
    monkeypatch.setitem(sys.modules, "coati.never", None)  # an import that is forbidden
    ledger = apply(small, ("f", "plus_one", "wrap"))
    assert [write.where for write in ledger] == [
        "coati.home:f",
        "coati.other:f",
        "coati.other:same",
    ]
    assert coati.other.same is coati.other.f is coati.home.f is not original
    assert mine.f is coati_like.f is original
    undo(ledger)
    assert coati.other.same is coati.other.f is coati.home.f is original


def test_what_a_module_has_taken_while_patched_is_given_back_too(small, monkeypatch):
    import coati.home

    original = coati.home.f
    (Path(coati.home.__file__).parent / "late.py").write_text("from coati.home import f, g\n")
    mine = types.ModuleType("mine")
    monkeypatch.setitem(sys.modules, "mine", mine)
    ledger = apply(small, ("f", "plus_one", "wrap"), ("f", "plus_one", "wrap"))
    late = importlib.import_module("coati.late")
    mine.f = coati.home.f
    assert late.f is coati.home.f is not original
    *most, last = way_back(ledger)
    assert last[:2] == (late, "f")
    for slot in most:  # and an interrupt before the last
        give_back(*slot)
    undo(ledger)
    assert late.f is coati.home.f is original
    assert late.g is coati.home.g
    assert mine.f is not original  # of the user's own


def test_patches_of_one_function_are_stacked_in_order_and_undone(small):
    import coati.home

    before = dict(vars(coati.home))
    ledger = apply(small, ("f", "plus_one", "wrap"), ("f", "plus_one", "wrap"))
    assert coati.home.f(5) == 7
    undo(ledger)
    assert vars(coati.home) == before


def test_an_inherited_method_is_extended_and_then_inherited_again(small):
    import coati.home

    ledger = apply(small, ("C.forward", "plus_one", "extend"), ("C.forward", "plus_one", "extend"))
    assert coati.home.C().forward(5) == 7
    assert coati.home.Base().forward(5) == 5
    undo(ledger)
    assert "forward" not in vars(coati.home.C)
    assert coati.home.C().forward(5) == 5


def test_a_decorated_function_is_known_by_what_it_wraps(small):
    import coati.home

    ledger = apply(small, ("g", "plus_one", "wrap"))
    assert coati.home.g(5) == 11
    undo(ledger)
    assert coati.home.g(5) == 10


@pytest.mark.parametrize("target", ["f", "Base.forward"])
def test_a_decorator_of_somebody_elses_is_foreign_and_nothing_is_written(small, target):
    import coati.home

    owner = coati.home.Base if "." in target else coati.home
    name = target.split(".")[-1]
    original = vars(owner)[name]
    setattr(owner, name, functools.wraps(original)(lambda *args: original(*args)))
    before = dict(vars(owner))
    with pytest.raises(RefusedError, match=f"coati.home:{target} was already changed"):
        apply(small, (target, "plus_one", "wrap"))
    assert vars(owner) == before


@pytest.mark.parametrize(("target", "mode"), [("f", "wrap"), ("Base.forward", "replace")])
def test_a_wrapper_that_equals_what_it_wraps_is_still_somebody_elses(small, target, mode):
    """Tracers wrap with wrapt, whose proxies are equal to the function inside."""
    import coati.home

    owner = coati.home.Base if "." in target else coati.home
    name = target.split(".")[-1]
    ledger = apply(small, (target, "plus_one" if mode == "wrap" else "constant", mode))
    ours = vars(owner)[name]
    wrapt.wrap_function_wrapper(owner, name, lambda wrapped, _, args, __: wrapped(*args))
    theirs = vars(owner)[name]
    assert theirs == ours
    with pytest.raises(DisturbedError, match=f"coati.home:{target}"):
        undo(ledger)
    assert vars(owner)[name] is theirs
    setattr(owner, name, ours)
    undo(ledger)


class Pretender:
    """A callable object that has a code object of its own, as proxies do."""

    def __init__(self, function):
        self.__code__ = function.__code__
        self.__wrapped__ = function

    def __call__(self, *args):
        return 0


@pytest.mark.parametrize(
    "around",
    [
        lambda f: wrapt.FunctionWrapper(f, lambda wrapped, _, args, __: wrapped(*args)),
        lambda f: functools.partial(f),
        classmethod,
        staticmethod,
        Pretender,
        functools.lru_cache(maxsize=None),
    ],
    ids=["wrapt", "partial", "classmethod", "staticmethod", "object", "lru_cache"],
)
@pytest.mark.parametrize("target", ["f", "g", "Base.forward"])
def test_what_passes_for_upstreams_function_is_foreign(small, target, around):
    """A proxy forwards its class and its code. Decorated targets have one wrapper, and no more."""
    import coati.home

    owner = coati.home.Base if "." in target else coati.home
    name = target.split(".")[-1]
    setattr(owner, name, around(vars(owner)[name]))
    before = dict(vars(owner))
    with pytest.raises(RefusedError, match=f"coati.home:{target} was already changed"):
        apply(small, (target, "plus_one", "wrap"))
    assert vars(owner) == before


def test_undo_can_be_interrupted_anywhere_and_done_again(small):
    import coati.home
    import coati.other

    before = [dict(vars(module)) for module in (coati.home, coati.other)]
    changes = [("f", "plus_one", "wrap"), ("f", "plus_one", "wrap"), ("g", "plus_one", "wrap")]
    for count in range(5):
        ledger = apply(small, *changes)
        for owner, name, value in way_back(ledger)[:count]:
            give_back(owner, name, value)
        undo(ledger)
        undo(ledger)
        assert [dict(vars(module)) for module in (coati.home, coati.other)] == before


def test_a_function_that_was_executed_again_is_upstreams(small):
    """After a reload without us: there is nothing to give back, and nothing is disturbed."""
    import coati.home

    ledger = apply(small, ("f", "plus_one", "wrap"), ("g", "plus_one", "wrap"))
    importlib.reload(coati.home)
    fresh = dict(vars(coati.home))
    undo(ledger)
    assert dict(vars(coati.home)) == fresh


def test_source_that_was_edited_after_the_plan_is_refused(small):
    import coati.home

    site = Site(
        "coati.home:f",
        "ours:plus_one",
        GENERATIONS,
        mode="wrap",
        fits={"here": small.function("coati.home", "f").fingerprint},
    )
    steps = plan_steps([Patch("p", "", (site,))], small, "strict")
    file = small.root / "home.py"
    file.write_text(HOME.replace("def f(x):\n    return x", "def f(x):\n    return -x"))
    with pytest.raises(RefusedError, match=r"f was edited in .*home.py after the plan"):
        writes_for(steps, {"coati.home": coati.home})


ACTOR = """
import ray


class Base:
    def loop(self):
        return self.step(1)

    def step(self, x):
        return 0


@ray.remote(num_cpus=0)
class Worker(Base):
    def step(self, x):
        return x
"""


@pytest.fixture
def actors(small):
    """The small coati with an actor class as its home."""
    pytest.importorskip("ray", reason="Ray is not installed")
    (small.root / "home.py").write_text(ACTOR)
    sys.modules.pop("coati.home")
    importlib.import_module("coati.home")
    return small


@pytest.mark.parametrize(
    ("new", "mode", "given"), [("plus_one", "wrap", 6), ("self_", "replace", 7)]
)
def test_an_actor_class_is_changed_where_ray_takes_its_methods_from(actors, new, mode, given):
    sys.modules["ours"].self_ = lambda self, x: 7
    cls = sys.modules["coati.home"].Worker.__ray_metadata__.modified_class
    before = vars(cls)["step"]
    ledger = apply(actors, ("Worker.step", new, mode))
    worker = cls()
    assert worker.step(5) == given
    assert worker.loop() == (2 if mode == "wrap" else 7)
    assert [write.owner for write in ledger] == [cls]
    undo(ledger)
    assert vars(cls)["step"] is before
    assert worker.step(5) == 5


def test_an_actor_method_that_somebody_else_has_wrapped_is_refused(actors):
    cls = sys.modules["coati.home"].Worker.__ray_metadata__.modified_class
    step = cls.step
    cls.step = functools.wraps(step)(lambda self, x: step(self, x))
    with pytest.raises(RefusedError, match=r"Worker\.step was already changed"):
        apply(actors, ("Worker.step", "plus_one", "wrap"))


@pytest.mark.parametrize("name", ["cluster_and_job", "session_and_job"])
def test_an_actor_that_was_created_before_is_named(actors, monkeypatch, name):
    import ray

    worker = importlib.import_module("ray._private.worker")
    monkeypatch.setattr(
        worker, "global_worker", types.SimpleNamespace(**{f"current_{name}": (1, 2)})
    )
    metadata = sys.modules["coati.home"].Worker.__ray_metadata__
    monkeypatch.setattr(metadata, f"last_export_{name}", (1, 2), raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    with pytest.raises(RefusedError, match=r"an actor of coati\.home\.Worker was created before"):
        apply(actors, ("Worker.step", "plus_one", "wrap"))
    monkeypatch.setattr(metadata, f"last_export_{name}", (1, 1), raising=False)  # of another job
    apply(actors, ("Worker.step", "plus_one", "wrap"))
