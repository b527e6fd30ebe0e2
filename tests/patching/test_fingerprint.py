"""Fingerprints: what they ignore, what they see, and that all Pythons agree."""

import ast
import textwrap

import pytest

from coati_ext.patching.fingerprint import changed_statements, fingerprint

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
    # Slices, f-strings and tuples are where ast.dump differs between Python 3.8 and 3.13.
    source = """
    @torch.no_grad()
    def f(self, x, *rest, key=None, **kw):
        y = x[:, -1, None], x[1:2], x[0]
        name: str = f"{y!r:>{8}} {x}"
        return {**kw, "name": name, "y": (y, rest, key)}
    """
    assert of(source) == "18e5ee7d-7f673276-0e0ad612-94bafbfe"


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
