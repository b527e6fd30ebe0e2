"""A fingerprint of a function's code, independent of formatting, type hints and Python version.

It has one part for the signature and one for each top-level statement, joined by ``-``. So two
fingerprints can be compared statement by statement, and an error can quote the lines that differ.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
from typing import List, Sequence, Tuple, Union

FunctionNode = Union[ast.FunctionDef, ast.AsyncFunctionDef]

# AST fields for type hints and syntax details that do not affect behaviour.
_IGNORED = frozenset(
    {"annotation", "returns", "type_comment", "type_params", "type_ignores", "kind", "ctx"}
)


def fingerprint(function: FunctionNode) -> str:
    """The fingerprint of a function: ``signature-statement-statement-...``, 8 hex digits each.

    The same source gives the same fingerprint on Python 3.8 to 3.13, unlike ``ast.dump``.
    """
    signature = [function.name, _canonical(function.args), _canonical(function.decorator_list)]
    return "-".join(_digest(part) for part in [signature, *map(_canonical, statements(function))])


def statements(function: FunctionNode) -> List[ast.stmt]:
    """The top-level statements of a function's body, without its docstring."""
    return _without_docstring(function.body)


def changed_statements(found: str, known: str) -> Tuple[bool, List[int], int]:
    """Compare a fingerprint with a known one.

    Returns:
        Whether the signature differs, the indices (into :func:`statements` of the found function)
        of the statements that the known function lacks, and the number of its statements that the
        found function lacks.
    """
    ours, theirs = found.split("-"), known.split("-")
    new: List[int] = []
    missing = 0
    matcher = difflib.SequenceMatcher(None, theirs[1:], ours[1:], autojunk=False)
    for tag, i1, i2, j1, j2 in matcher.get_opcodes():
        if tag != "equal":
            new.extend(range(j1, j2))
            missing += max(0, (i2 - i1) - (j2 - j1))
    return ours[0] != theirs[0], new, missing


def likeness(found: str, known: str) -> float:
    """The similarity of two fingerprints, from 0 to 1."""
    return difflib.SequenceMatcher(None, found.split("-"), known.split("-")).ratio()


def _digest(part: object) -> str:
    return hashlib.sha256(repr(part).encode()).hexdigest()[:8]


def _without_docstring(body: Sequence[ast.stmt]) -> List[ast.stmt]:
    first = body[0] if body else None
    if (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    ):
        return list(body[1:])
    return list(body)


def _canonical(node: object) -> object:
    if isinstance(node, list):
        return [_canonical(item) for item in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    kind = type(node).__name__
    if kind == "Index":  # Python 3.8 wraps a subscript in these two
        return _canonical(node.value)  # type: ignore[attr-defined]
    if kind == "ExtSlice":
        return ["Tuple", ["elts", _canonical(node.dims)]]  # type: ignore[attr-defined]
    fields: List[object] = []
    for name, value in ast.iter_fields(node):
        if name == "body" and isinstance(
            node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        ):
            value = _without_docstring(value)
        if name == "values" and kind == "JoinedStr":  # Python 3.12.1 adds empty pieces to f-strings
            value = [item for item in value if getattr(item, "value", None) != ""]
        if name not in _IGNORED and value is not None and value != []:
            fields.append([name, _canonical(value)])
    return [kind, *fields]
