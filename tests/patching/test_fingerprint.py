"""Fingerprints: what they ignore, what they see, and that all Pythons agree."""

from __future__ import annotations

import ast
import sys
import textwrap

import pytest

from coati_ext.patching.fingerprint import changed_statements, fingerprint
from coati_ext.patching.variants import is_by_code
from coati_ext.plan import make_plan
from helpers.edits import harmless, meaningful, parsed

PLAIN = '''
def forward(self, ids, mask=None):
    """Score."""
    hidden = self.model(ids, attention_mask=mask)["last"]
    return self.head(hidden[:, -1, 0:2])
'''


def of(source):
    (function,) = ast.parse(textwrap.dedent(source)).body
    return fingerprint(function)


@pytest.mark.parametrize(
    "same",
    [
        """
        def forward(self, ids: "Tensor", mask: Optional[Tensor] = None) -> Tensor:
            # a comment
            hidden = self.model(
                ids,
                attention_mask=mask,
            )['last']
            return self.head(hidden[:, -1, 0:2])
        """,
        PLAIN.replace('"""Score."""', '"""Another docstring."""'),
    ],
    ids=["formatting and hints", "docstring"],
)
def test_formatting_hints_and_docstrings_do_not_matter(same):
    assert of(same) == of(PLAIN)


@pytest.mark.parametrize(
    ("old", "new"),
    [("-1", "-2"), ("mask=None", "mask=0"), ("ids", "tokens"), ("0:2", "0:2:1")],
)
def test_a_changed_constant_name_or_default_matters(old, new):
    assert of(PLAIN.replace(old, new)) != of(PLAIN)


def test_a_decorator_matters():
    assert of("@cached" + PLAIN) != of(PLAIN)


def test_every_python_gives_this_one_fingerprint():
    # Slices, f-strings and tuples are where ast.dump differs between Python 3.8 and 3.13; U+1FAE8
    # is a letter that only new ones know.
    source = """
    @torch.no_grad()
    def f(self, x, *rest, key=None, **kw):
        y = x[:, -1, None], x[1:2], x[0]
        name: str = f"{y!r:>{8}} {x}"
        face: str
        face = "\U0001fae8" f"{name=}" "." rf"\\{x:{y}.{1}}"
        return {**kw, "name": name, "y": (y, rest, key), "face": face}
    """
    assert of(source) == "18e5ee7d-7f673276-bbd317ac-ddb70a45-9d36a6db"


def test_a_changed_statement_is_pointed_at():
    edited = PLAIN.replace('["last"]', '["last"]\n    hidden = hidden * 2')
    assert changed_statements(of(edited), of(PLAIN)) == (False, [1], 0)
    assert changed_statements(of(PLAIN), of(edited)) == (False, [], 1)
    renamed = PLAIN.replace("mask=None", "mask")
    assert changed_statements(of(renamed), of(PLAIN)) == (True, [], 0)


def test_the_functions_inside_a_function_count_but_for_their_docstrings_and_hints():
    outer = '''
    def f(x):
        def g(y) -> int:
            """Twice."""
            return 2 * y
        return g(x)
    '''
    assert of(outer.replace('"""Twice."""', '"""Two times."""')) == of(outer)
    assert of(outer.replace("(y) -> int", "(y: int)")) == of(outer)
    assert of(outer.replace("2 * y", "3 * y")) != of(outer)
    assert of(outer.replace("def g(", "def h(")) != of(outer)


def test_an_empty_text_matters_but_not_as_a_piece_of_an_f_string():
    either = 'def f(x, y):\n    return x or "" or y'
    assert of(either) != of(either.replace('"" or ', ""))
    plain = ast.parse('def f(x):\n    return f"<{x}>"').body[0]
    padded = ast.parse('def f(x):\n    return f"<{x}>"').body[0]
    padded.body[0].value.values.insert(1, ast.Constant(""))  # as Python 3.12.1 does
    assert fingerprint(padded) == fingerprint(plain)


def test_a_coroutine_is_not_a_function():
    assert of("async " + PLAIN.strip()) != of(PLAIN)
    assert changed_statements(of("async " + PLAIN.strip()), of(PLAIN)) == (True, [], 0)


@pytest.mark.parametrize(
    "hinted",
    [
        "x: int = 3",
        "(x): int = 3",
        "x: int\n    x = 3",
        "x: 'no such name'\n    x: int = 3",
        "(x): int\n    x = 3",
        "self.x: int\n    x = 3",
    ],
)
def test_a_hint_on_a_local_variable_does_not_matter(hinted):
    plain = "def f(self):\n    x = 3\n    return x"
    assert of(plain.replace("x = 3", hinted)) == of(plain)
    assert of(plain.replace("x = 3", "self.x = 3")) != of(plain)
    attribute = plain.replace("x = 3", "self.x: int = 3")
    assert of(attribute) == of(plain.replace("x = 3", "self.x = 3"))


def test_a_hint_that_calls_something_matters():
    plain = "def f():\n    return 3"
    assert of(plain.replace("return", "g().x: int\n    return")) != of(plain)


def test_hints_of_a_class_inside_matter_and_those_of_its_methods_do_not():
    """They are the fields of a dataclass or a tuple."""
    plain = """
    def f():
        class Row(NamedTuple):
            x: int
            y: int = 3
            if z:
                w: int = 3
            def g(self):
                v = 3
    """
    for line, other in [
        ("x: int\n", "x: str\n"),
        ("x: int\n", "pass\n"),
        ("y: int = 3", "y = 3"),
        ("w: int = 3", "w = 3"),
    ]:
        assert of(plain.replace(line, other)) != of(plain)
    assert of(plain.replace("v = 3", "v: int = 3")) == of(plain)


EVERYTHING = """
@torch.no_grad()
async def f(self, a, b=1, *rest, key, other="text", **more):
    '''Told.'''
    global shared
    import os.path as path
    from . import things, stuff as staff
    def inner(x: int = 2) -> int:
        '''Told.'''
        nonlocal a
        a += x
        yield a
        yield from (x, a)
    class Row(Base, metaclass=Meta):
        '''Told.'''
        width: int = 3
        def area(self, by=lambda w, h=2: w * h):
            return by(self.width)
    c: int = a if b is None else -b ** 2
    shared = c
    self.d, (e, *g) = 1.5, [*rest, not a, 0x10, b"bytes"]
    h = {**more, "k": [i async for i in a if i], None: {1, 2}}
    j = f"{a!r:>{b}} {c:.3f}{{}}"
    k = a[1:2, ::b, ...], a[None:], a[:b]
    async with a.b as m, b:
        await m
    async for n in g:
        if a <= b < c and not (c or b) and a in b:
            continue
        elif a == 1e-3:
            break
    else:
        del h["k"], k
    try:
        assert a, "message"
        raise ValueError(j) from None
    except (TypeError, KeyError) as error:
        pass
    finally:
        while (q := a(*rest, key=1, **more)) is not None:
            b @= q >> 1 | ~c
    return {r: s for r, s in sorted(h, key=len)}
"""
MATCH = """
def f(self, x):
    match x, self:
        case [1, "a", *rest] if rest:
            return None
        case {"k": None, **more} | Point(x=0, y=-1) as p:
            return True
        case str() | (2 | 3):
            return x
        case _:
            return False
"""


@pytest.mark.attack
@pytest.mark.parametrize("text", [EVERYTHING, MATCH], ids=["everything", "match"])
def test_no_construct_of_python_is_overlooked(text, tally):
    if text is MATCH and sys.version_info < (3, 10):
        pytest.skip("no match statements in this Python")
    report(*edited(text), tally)


@pytest.mark.attack
@pytest.mark.once(why="what another Python could make of them is in the test above")
def test_edits_of_upstreams_functions_are_told_from_cosmetics(upstream, full, tally):
    """Each edit of each function that a patch changes or relies on; a sample without --full."""
    plan = make_plan()
    needed = [step.function for step in plan.steps if is_by_code(step.site)]
    needed += [item.function for item in plan.relies]
    texts = sorted({function.text for function in needed if function is not None})
    assert len(texts) > 30
    every = (1, 1) if full else (53, 101)
    tried, missed, alarms = 0, [], []
    for text in texts:
        found = edited(text, *every)
        tried += found[0]
        missed += found[1]
        alarms += found[2]
    report(tried, missed, alarms, tally)


def edited(text, *every):
    """How many edits there are, those that were missed, and those that were none."""
    function = parsed(text)
    before = fingerprint(function)
    changed = [
        (what, fingerprint(other) != before) for what, other in meaningful(function, *every[:1])
    ]
    assert fingerprint(function) == before
    kept = [
        (what, fingerprint(parsed(other)) == before) for what, other in harmless(text, *every[1:])
    ]
    missed = [f"{function.name}: {what}" for what, right in changed if not right]
    alarms = [f"{function.name}: {what}" for what, right in kept if not right]
    return len(changed) + len(kept), missed, alarms


def report(tried, missed, alarms, tally):
    tally("edits of functions: fingerprints", tried, len(missed) + len(alarms))
    assert missed == []
    assert alarms == []
