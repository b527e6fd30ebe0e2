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
    {
        "annotation",
        "returns",
        "type_comment",
        "type_params",
        "type_ignores",
        "kind",
        "ctx",
        "simple",
    }
)
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def fingerprint(function: FunctionNode) -> str:
    """The fingerprint of a function: ``signature-statement-statement-...``, 8 hex digits each.

    The same source gives the same fingerprint on every Python from 3.8, unlike ``ast.dump``.
    """
    signature = [function.name, _canonical(function.args), _canonical(function.decorator_list)]
    if isinstance(function, ast.AsyncFunctionDef):
        signature.append("async")
    return "-".join(_digest(part) for part in [signature, *map(_canonical, statements(function))])


def statements(function: FunctionNode) -> List[ast.stmt]:
    """The top-level statements of a function's body, without its docstring and bare hints."""
    return [item for item in _without_docstring(function.body) if not _is_hint(item)]


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
    # Not repr: which letters it escapes depends on the Unicode version, and so on Python's.
    return hashlib.sha256(ascii(part).encode()).hexdigest()[:8]


def _without_docstring(body: Sequence[ast.stmt]) -> List[ast.stmt]:
    first = body[0] if body else None
    if (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    ):
        return list(body[1:])
    return list(body)


def _is_hint(statement: object) -> bool:
    """Whether this is ``name: hint`` or ``self.name: hint``, which do nothing in a function.

    A hint can make a name local that would be global, and then reading it raises an error.
    """
    if not isinstance(statement, ast.AnnAssign) or statement.value is not None:
        return False
    target: ast.expr = statement.target
    while isinstance(target, ast.Attribute):
        target = target.value
    return isinstance(target, ast.Name)  # of `f().name: hint`, Python calls `f`


def _canonical(node: object, in_class: bool = False) -> object:
    """A node as lists of texts.

    Args:
        node: a node, a list of them, or the value of a field.
        in_class: whether it stands in the body of a class, where hints are data that a decorator or
            base class may read. In a function they are not even evaluated.
    """
    if isinstance(node, list):
        return [_canonical(item, in_class) for item in node if in_class or not _is_hint(item)]
    if not isinstance(node, ast.AST):
        return ascii(node)
    kind = type(node).__name__
    if kind == "Index":  # Python 3.8 wraps a subscript in these two
        return _canonical(node.value)  # type: ignore[attr-defined]
    if kind == "ExtSlice":
        return ["Tuple", ["elts", _canonical(node.dims)]]  # type: ignore[attr-defined]
    ignored = _IGNORED
    if isinstance(node, ast.AnnAssign):
        if in_class:
            ignored = frozenset()
        elif node.value is not None:
            node, kind = ast.Assign(targets=[node.target], value=node.value), "Assign"
    if isinstance(node, _SCOPES):
        in_class = isinstance(node, ast.ClassDef)
    fields: List[object] = []
    for name, value in ast.iter_fields(node):
        if name == "values" and kind == "JoinedStr":  # Python 3.12.1 adds empty pieces to f-strings
            value = [item for item in value if getattr(item, "value", None) != ""]
        if name == "body" and isinstance(node, _SCOPES):
            value = _without_docstring(value)
        if name in ignored or value is None:
            continue
        canonical = _canonical(value, in_class)
        if canonical != []:
            fields.append([name, canonical])
    return [kind, *fields]
