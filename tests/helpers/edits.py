"""Edits of a function: those that change what it does, and those that do not."""

from __future__ import annotations

import ast
import copy
import io
import itertools
import re
import sys
import textwrap
import tokenize
from typing import Any, Iterator, List, Tuple, Union

FunctionNode = Union[ast.FunctionDef, ast.AsyncFunctionDef]
_HINTS = ("annotation", "returns", "type_comment")
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_OTHER = {
    "And": ast.Or,
    "Or": ast.And,
    "Not": ast.USub,
    "USub": ast.UAdd,
    "UAdd": ast.USub,
    "Invert": ast.USub,
    "Add": ast.Sub,
    "Sub": ast.Add,
    "Mult": ast.Div,
    "Div": ast.FloorDiv,
    "FloorDiv": ast.Div,
    "Mod": ast.Mult,
    "Pow": ast.Mult,
    "MatMult": ast.Mult,
    "LShift": ast.RShift,
    "RShift": ast.LShift,
    "BitOr": ast.BitAnd,
    "BitAnd": ast.BitOr,
    "BitXor": ast.BitOr,
    "Eq": ast.Is,
    "NotEq": ast.Eq,
    "Is": ast.Eq,
    "IsNot": ast.Is,
    "Lt": ast.LtE,
    "LtE": ast.Lt,
    "Gt": ast.GtE,
    "GtE": ast.Gt,
    "In": ast.NotIn,
    "NotIn": ast.In,
}
_TWINS = {
    "FunctionDef": ast.AsyncFunctionDef,
    "AsyncFunctionDef": ast.FunctionDef,
    "For": ast.AsyncFor,
    "AsyncFor": ast.For,
    "With": ast.AsyncWith,
    "AsyncWith": ast.With,
    "List": ast.Tuple,
    "Tuple": ast.List,
    "ListComp": ast.SetComp,
    "SetComp": ast.GeneratorExp,
    "GeneratorExp": ast.ListComp,
    "Yield": ast.Await,
    "YieldFrom": ast.Await,
    "Global": ast.Nonlocal,
    "Nonlocal": ast.Global,
    "Raise": None,
}


def parsed(text: str) -> FunctionNode:
    """The one function of a text."""
    (function,) = ast.parse(textwrap.dedent(text)).body
    assert isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
    return function


def meaningful(function: FunctionNode, every: int = 1) -> Iterator[Tuple[str, FunctionNode]]:
    """Each edit that changes what a function does: what it is, and the function so edited.

    The function is edited in place, and as before when the next edit is asked for. The first is of
    the kind of the function itself, and a copy. Of the others, some are skipped if ``every`` says
    so.
    """
    yield "async", _twin(function)
    edits = (
        (node, *edit) for node, inside in list(_places(function)) for edit in _edits(node, inside)
    )
    for node, what, field, value in itertools.islice(edits, 0, None, every):
        held = getattr(node, field)
        setattr(node, field, value)
        yield f"{type(node).__name__}.{field} {what}, line {getattr(node, 'lineno', 0)}", function
        setattr(node, field, held)


def _places(node: ast.AST, inside: str = "") -> Iterator[Tuple[ast.AST, str]]:
    """Every node below, hints and docstrings apart, and the field of the parent that it is in."""
    yield node, inside
    for field, value in ast.iter_fields(node):
        if field in _HINTS or field == "type_params":
            continue
        children = value if isinstance(value, list) else [value]
        if field == "body" and isinstance(node, _SCOPES):
            children = _without_docstring(children)
        for child in children:
            if isinstance(child, ast.AST) and not isinstance(child, (ast.expr_context, ast.Pass)):
                yield from _places(child, field)


def _without_docstring(body: List[Any]) -> List[Any]:
    return body[1:] if _is_docstring(body[:1]) else body


def _is_docstring(body: List[Any]) -> bool:
    value = getattr(body[0], "value", None) if body and isinstance(body[0], ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def _edits(node: ast.AST, inside: str) -> Iterator[Tuple[str, str, Any]]:
    """What can be done to a node, which of its fields that sets, and to what."""
    for field, value in ast.iter_fields(node):
        if field in (*_HINTS, "ctx", "kind", "type_ignores", "simple", "type_params"):
            continue
        if isinstance(value, list):
            yield from _edits_of_list(node, field, value)
        elif isinstance(value, (ast.operator, ast.unaryop, ast.boolop)):
            yield "swapped", field, _OTHER[type(value).__name__]()
        elif type(value).__name__ in _TWINS:
            twin = _twin(value)
            if twin is not None:
                yield f"to {type(twin).__name__}", field, twin
        if isinstance(value, str) and field != "value":  # a name of any kind
            yield "renamed", field, f"{value}_"
        elif isinstance(value, ast.expr):
            yield from _edits_of_expression(node, field, value)
        elif value is None and field in ("lower", "upper", "step", "cause", "msg", "vararg"):
            new = ast.arg("more") if field == "vararg" else ast.Constant(7)
            yield "added", field, new
    if isinstance(node, ast.Constant) and not (inside == "values" and node.value == ""):
        yield "changed", "value", _other_constant(node.value)
    if isinstance(node, ast.FormattedValue):
        yield "conversion", "conversion", 114 if node.conversion != 114 else 115
        if node.format_spec is None:
            yield "format", "format_spec", ast.JoinedStr([ast.Constant(">8")])
    if isinstance(node, ast.comprehension):
        yield "async", "is_async", 1 - node.is_async
    if isinstance(node, ast.arguments) and node.args:
        *args, last = node.args
        if len(node.defaults) > 0:
            yield "without a default", "defaults", node.defaults[1:]
        yield "one fewer", "args", args
        yield "positional only", "posonlyargs", [*node.posonlyargs, node.args[0]]
        yield "keyword only", "kwonlyargs", [last, *node.kwonlyargs]
    if isinstance(node, ast.ImportFrom):
        yield "level", "level", (node.level or 0) + 1


def _edits_of_list(node: ast.AST, field: str, items: List[Any]) -> Iterator[Tuple[str, str, Any]]:
    is_block = bool(items) and isinstance(items[0], ast.stmt)
    skipped = 0
    if field == "body" and isinstance(node, _SCOPES):
        skipped = int(_is_docstring(items))
    if field == "decorator_list":
        yield "added", field, [*items, ast.Name("cached", ast.Load())]
    for at in range(skipped, len(items)):
        item, rest = items[at], items[at + 1 :]
        if isinstance(item, ast.Pass) or _is_empty_piece(node, item) or _is_bare_hint(item):
            continue
        if isinstance(item, (ast.cmpop, ast.operator)):
            yield "swapped", field, [*items[:at], _OTHER[type(item).__name__](), *rest]
            continue
        if isinstance(item, str):  # the names of a global statement
            yield "renamed", field, [*items[:at], f"{item}_", *rest]
        fewer = [*items[:at], *rest]
        yield f"[{at}] removed", field, fewer or ([ast.Pass()] if is_block else [])
        twin = _twin(item) if isinstance(item, ast.AST) else None
        if twin is not None:
            yield f"[{at}] to {type(twin).__name__}", field, [*items[:at], twin, *rest]
        if isinstance(item, ast.Starred):
            yield f"[{at}] without its star", field, [*items[:at], item.value, *rest]
        if isinstance(item, ast.stmt) and is_block:
            yield f"[{at}] twice", field, [*items[: at + 1], *items[at:]]
            stop = ast.Return(None) if not isinstance(item, ast.Return) else ast.Pass()
            yield f"[{at}] after {type(stop).__name__}", field, [*items[:at], stop, *items[at:]]
        if isinstance(item, ast.expr) and not isinstance(item, ast.Starred):
            call = ast.Call(ast.Name("other", ast.Load()), [item], [])
            yield f"[{at}] in a call", field, [*items[:at], call, *rest]
        for other in range(at + 1, min(at + 2, len(items))):
            after = items[other]
            if not isinstance(after, (str, ast.Pass)) and not _same(item, after):
                swapped = [*items[:at], after, item, *items[other + 1 :]]
                if not (_is_empty_piece(node, after) or _is_bare_hint(after)):
                    yield f"[{at}] exchanged", field, swapped


def _edits_of_expression(
    node: ast.AST, field: str, value: ast.expr
) -> Iterator[Tuple[str, str, Any]]:
    if isinstance(value, ast.UnaryOp):
        yield "without its operator", field, value.operand
    if isinstance(value, (ast.NamedExpr, ast.Await, ast.Starred)):
        yield "unwrapped", field, value.value
    if isinstance(value, ast.IfExp):
        yield "the other branch", field, value.orelse
        yield "exchanged", field, ast.IfExp(value.test, value.orelse, value.body)
    if isinstance(value, (ast.BinOp, ast.Compare)):
        yield "only its left", field, value.left
    if isinstance(node, ast.Return) or field in ("step", "lower", "upper", "exc", "msg", "cause"):
        yield "gone", field, None
    if isinstance(node, ast.ExceptHandler) and field == "type":
        yield "any", field, None
    if field in ("test", "iter"):
        yield "negated", field, ast.UnaryOp(ast.Not(), value)
    if field == "value" and not isinstance(value, ast.Constant):
        yield "in a call", field, ast.Call(ast.Name("other", ast.Load()), [value], [])


def _twin(node: Any) -> Any:
    """A node of another kind with the same fields."""
    kind = _TWINS.get(type(node).__name__)
    if kind is None:
        return None
    twin = kind()
    for field, value in ast.iter_fields(node):
        setattr(twin, field, value)
    for field in ("lineno", "col_offset"):
        if hasattr(node, field):
            setattr(twin, field, getattr(node, field))
    if isinstance(node, ast.Yield) and node.value is None:
        twin.value = ast.Constant(None)
    return twin


def _same(one: Any, other: Any) -> bool:
    return not isinstance(one, ast.AST) or ast.dump(one) == ast.dump(other)


def _is_empty_piece(node: ast.AST, item: Any) -> bool:
    return isinstance(node, ast.JoinedStr) and getattr(item, "value", None) == ""


def _is_bare_hint(item: Any) -> bool:
    return isinstance(item, ast.AnnAssign) and item.value is None


def _other_constant(value: Any) -> Any:
    if isinstance(value, bool) or value is None:
        return {True: False, False: None, None: True}[value]
    if isinstance(value, str):
        return f"{value}x"
    if isinstance(value, bytes):
        return value + b"x"
    return 0 if value is ... else value + 1


def harmless(text: str, every: int = 1) -> Iterator[Tuple[str, str]]:
    """Each edit that keeps what a function does: what it is, and the text so edited.

    Those that happen to be no Python, such as a parenthesis where there may be none, are left out.
    """
    text = textwrap.dedent(text)
    for what, edited in itertools.islice(_harmless(text), 0, None, every):
        if edited == text:
            continue
        try:
            compile(edited, "edited", "exec", dont_inherit=True)
        except SyntaxError:
            continue
        yield what, edited


def _harmless(text: str) -> Iterator[Tuple[str, str]]:
    yield from _whole_text(text)
    yield from _by_token(text)
    yield from _by_node(text)


def _whole_text(text: str) -> Iterator[Tuple[str, str]]:
    tree = ast.parse(text)
    if sys.version_info >= (3, 9):
        yield "written anew", ast.unparse(tree)
        hinted, bare = copy.deepcopy(tree), copy.deepcopy(tree)
        for node in ast.walk(hinted):
            if isinstance(node, ast.arg):
                node.annotation = ast.Name("Hint", ast.Load())
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                node.returns = ast.Constant("Hint")
        yield "hints everywhere", ast.unparse(hinted)
        for node in ast.walk(bare):
            if isinstance(node, ast.arg):
                node.annotation = None
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                node.returns = None
        yield "no hints", ast.unparse(bare)
        told, silent = copy.deepcopy(tree), copy.deepcopy(tree)
        for node in ast.walk(told):
            if isinstance(node, _SCOPES):
                node.body = [ast.Expr(ast.Constant("Told.")), *_without_docstring(node.body)]
        yield "docstrings everywhere", ast.unparse(ast.fix_missing_locations(told))
        for node in ast.walk(silent):
            if isinstance(node, _SCOPES):
                node.body = _without_docstring(node.body) or node.body
        yield "no docstrings", ast.unparse(silent)


def _by_token(text: str) -> Iterator[Tuple[str, str]]:
    lines = text.splitlines(keepends=True)

    def at(token: tokenize.TokenInfo, new: str) -> str:
        (first, start), (last, end) = token.start, token.end
        before = "".join(lines[: first - 1]) + lines[first - 1][:start]
        return before + new + lines[last - 1][end:] + "".join(lines[last:])

    depth = 0  # in f-strings, which are taken apart from Python 3.12 on
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        where = f"line {token.start[0]}"
        kind = tokenize.tok_name[token.type]
        depth += {"FSTRING_START": 1, "FSTRING_END": -1}.get(kind, 0)
        if depth:
            continue
        if token.type == tokenize.NEWLINE:
            yield f"comment, {where}", at(token, "  # a comment\n\n    # and another\n")
            yield f"type comment, {where}", at(token, "  # type: ignore\n")
        elif token.type == tokenize.NL and token.string:
            yield f"comment inside, {where}", at(token, "  # inside\n\n")
        elif token.type == tokenize.COMMENT:
            yield f"no comment, {where}", at(token, "")
        elif token.type == tokenize.OP and token.string in "([{":
            yield f"new line, {where}", at(token, f"{token.string}\n  ")
        elif token.type == tokenize.OP and token.string not in ("@", "->", ":", "."):
            yield f"spaces, {where}", at(token, f"  {token.string}  ")
        elif token.type == tokenize.NUMBER:
            for spelling in _spellings(token.string):
                yield f"{token.string} as {spelling}, {where}", at(token, spelling)
        elif token.type == tokenize.STRING and token.string[0] in "\"'":
            yield from ((f"{what}, {where}", at(token, new)) for what, new in _texts(token.string))


def _spellings(number: str) -> Iterator[str]:
    value = ast.literal_eval(number)
    if isinstance(value, int):
        yield hex(value)
        yield f"{value:_}"
    elif isinstance(value, float):
        if "." in number and "e" not in number.lower():
            yield f"{number}0"
        yield f"{value!r}e0" if "e" not in repr(value) else f"{value!r}".replace("e", "E")


def _texts(string: str) -> Iterator[Tuple[str, str]]:
    value = ast.literal_eval(string)
    yield "quotes", repr(value) if string[0] == '"' else '"' + repr(value)[1:-1] + '"'
    yield "prefix", f"u{string}"
    yield "escapes", '"' + "".join(f"\\U{ord(letter):08x}" for letter in value) + '"'
    half = len(value) // 2
    yield "in two pieces", f"{value[:half]!r} {value[half:]!r}"
    yield "in three quotes", f"'''{value}'''" if not re.search(r"['\\\n]", value) else string


def _by_node(text: str) -> Iterator[Tuple[str, str]]:
    tree = ast.parse(text)
    lines = text.encode().splitlines(keepends=True)
    starts = [sum(map(len, lines[:row])) for row in range(len(lines) + 1)]
    raw = text.encode()

    def place(line: int, column: int) -> int:
        return starts[line - 1] + column

    def put(*pieces: Tuple[int, str]) -> str:
        done = raw
        for where, new in sorted(pieces, reverse=True):
            done = done[:where] + new.encode() + done[where:]
        return done.decode()

    in_text = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for child in ast.walk(node)
    }
    in_classes = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for child in _own(node)
    }
    fields = {  # which such a parenthesis keeps from being recorded
        id(node.target)
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign) and id(node) in in_classes
    }
    for node in ast.walk(tree):
        if not isinstance(node, (ast.expr, ast.stmt)) or id(node) in in_text:
            continue
        begin = place(node.lineno, node.col_offset)
        end = place(node.end_lineno or 0, node.end_col_offset or 0)
        where = f"{type(node).__name__}, line {node.lineno}"
        if isinstance(node, ast.expr) and id(node) not in fields:
            yield f"parentheses: {where}", put((begin, "("), (end, ")"))
        if isinstance(node, ast.Call) and (node.args or node.keywords):
            yield f"comma: {where}", put((end - 1, ","))
        if isinstance(node, (ast.List, ast.Dict)) and raw[end - 1 : end] in (b"]", b"}"):
            yield f"comma: {where}", put((end - 1, ","))
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and id(node) not in in_classes:
            (target,) = node.targets
            after = place(target.end_lineno or 0, target.end_col_offset or 0)
            if not isinstance(target, (ast.Tuple, ast.List, ast.Starred)):
                yield f"hint: {where}", put((after, ': "Hint"'))
                first = place(target.lineno, target.col_offset)
                if isinstance(target, ast.Name):
                    yield f"hint in parentheses: {where}", put((first, "("), (after, "): Hint"))
            if isinstance(target, (ast.Name, ast.Attribute)) and _is_first(raw, begin):
                name = ast.get_source_segment(text, target)
                alone = f"{name}: Hint\n{' ' * node.col_offset}"
                yield f"hint alone: {where}", put((begin, alone))
            value = place(node.value.lineno, node.value.col_offset)
            yield f"continued line: {where}", put((value, "\\\n  "))
        if isinstance(node, ast.AnnAssign) and id(node) not in in_classes:
            after = place(node.target.end_lineno or 0, node.target.end_col_offset or 0)
            last = place(node.annotation.end_lineno or 0, node.annotation.end_col_offset or 0)
            if node.value is not None and raw[begin : begin + 1] != b"(":
                yield f"no hint: {where}", (raw[:after] + raw[last:]).decode()


def _own(scope: ast.ClassDef) -> Iterator[ast.stmt]:
    """The statements of a class that are in no function of it."""
    waiting: List[Any] = list(scope.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        yield node
        waiting += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]


def _is_first(raw: bytes, begin: int) -> bool:
    """Whether a statement begins its line."""
    return not raw[raw.rfind(b"\n", 0, begin) + 1 : begin].strip()
