"""Every message that the package can raise, warn of or report, found in its source by ``ast``.

A message is followed from where it leaves the package (``_leaves``) back to its words: through
local names, parameters and what is handed to them, constants, and what functions return. Where a
value is put into a text stands ``GAP``. A text that is put into another one is a message of its
own.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from typing import Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

from helpers import ROOT

GAP = "\0"
LEAST = 12
"""Letters of the shortest piece of a message that a search can find it by."""
_POINTS = " .,:;()"
EXEMPT = {
    "coati_ext/patching/variants.py": "reads patches/upstream.toml, which maintainers write",
    "coati_ext/testing/standins": "has upstream's own errors",
}
"""Places whose messages no user meets, and why."""
REPORTED = {"Gap", "Interpreter", "Reading", "Row", "Step"}
"""Classes whose texts the commands and the report show."""
GATHERED = {"notes", "problems"}
"""Names of lists whose texts one error or the report shows."""
RETURNED = {"_verdict"}
"""Functions whose texts a command shows as they are."""
PROTOCOL = {"AttributeError"}
"""Python itself asks for these, and knows their words."""


class Function(NamedTuple):
    """A function, with what surrounds it."""

    file: str
    node: ast.AST
    """Of a module: the module itself."""
    owners: Tuple[ast.AST, ...]

    @property
    def name(self) -> str:
        return getattr(self.node, "name", "")


def fragments(text: str) -> List[str]:
    """The pieces of a message between its gaps, without the space and points around them."""
    parts = (" ".join(part.split()) for part in re.split(rf"{GAP}|\.\.\.|\n", text))
    return [part.strip(_POINTS) for part in parts if part.strip(_POINTS)]


def longest(text: str) -> str:
    """The piece that a search finds a message by."""
    return max(fragments(text), key=len, default="")


class Source:
    """The source of the package, indexed."""

    def __init__(self) -> None:
        self.functions: Dict[str, List[Function]] = defaultdict(list)
        self.constants: Dict[str, List[Tuple[ast.AST, Function]]] = defaultdict(list)
        self.attributes: Dict[Tuple[str, str], List[Tuple[ast.AST, Function]]] = defaultdict(list)
        """What is assigned to an attribute of ``self``, by file and name."""
        self.calls: Dict[str, List[Tuple[ast.Call, Function]]] = defaultdict(list)
        self.homes: Dict[Tuple[str, str], str] = {}
        """The module that a file imports a name from, by file and name."""
        self.nodes: List[Tuple[ast.AST, Function]] = []
        for folder in ("coati_ext", "patches"):
            for path in sorted((ROOT / folder).rglob("*.py")):
                file = path.relative_to(ROOT).as_posix()
                if not file.startswith(tuple(EXEMPT)):
                    tree = ast.parse(path.read_text(encoding="utf-8"))
                    self._index(tree, Function(file, tree, ()))

    def _index(self, node: ast.AST, where: Function) -> None:
        for child in ast.iter_child_nodes(node):
            self.nodes.append((child, where))
            inner = where
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                inner = Function(where.file, child, (*where.owners, where.node))
                self.functions[child.name].append(inner)
            elif isinstance(child, ast.Call):
                self.calls[_called(child)].append((child, where))
            elif isinstance(child, ast.ImportFrom):
                home = (child.module or "").rpartition(".")[2]
                self.homes.update({(where.file, item.name): home for item in child.names})
            elif isinstance(child, ast.Assign):
                for target in child.targets:
                    if isinstance(target, ast.Name) and not where.owners:
                        self.constants[target.id].append((child.value, where))
                    elif isinstance(target, ast.Attribute):
                        self.attributes[where.file, target.attr].append((child.value, where))
            self._index(child, inner)

    def words(self) -> List[str]:
        """Every piece of every text in the source, docstrings aside, the longest first."""
        docstrings = {id(node.value) for node, _ in self.nodes if isinstance(node, ast.Expr)}
        texts = [
            node.value
            for node, _ in self.nodes
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
            if id(node) not in docstrings
        ]
        pieces = {piece for text in texts for piece in fragments(text)}
        return sorted(pieces, key=len, reverse=True)

    def messages(self) -> Dict[str, str]:
        """Each message that a search can find, and the file that it is written in."""
        found: Dict[str, str] = {}
        seen: Set[Tuple[int, str]] = set()
        for node, where in self.nodes:
            for expression in _leaves(node, where):
                for text, file in self._texts(expression, where, seen):
                    if len(longest(text)) >= LEAST and " " in longest(text):
                        found.setdefault(text, file)
        return found

    def _texts(
        self, node: Optional[ast.AST], where: Function, seen: Set[Tuple[int, str]]
    ) -> Iterator[Tuple[str, str]]:
        key = (id(node), "")
        if node is None or key in seen:
            return
        seen.add(key)
        if isinstance(node, ast.Constant):
            if isinstance(node.value, str):
                yield node.value, where.file
            return
        if isinstance(node, ast.JoinedStr):
            parts = [getattr(part, "value", "") for part in node.values]
            words = (it.value if isinstance(it, ast.Constant) else GAP for it in node.values)
            yield "".join(words), where.file
            more: List[ast.AST] = [part for part in parts if isinstance(part, ast.AST)]
        elif isinstance(node, ast.Name):
            yield from self._named(node.id, where, seen)
            return
        elif isinstance(node, ast.Attribute):
            more = []
            constants = self.constants[node.attr] if node.attr.isupper() else []
            for value, home in (*constants, *self.attributes[where.file, node.attr]):
                yield from self._texts(value, home, seen)
        elif isinstance(node, ast.Call):
            known = self._functions(node, where)
            for function in known:
                for value in _given_back(function.node):
                    yield from self._texts(value, function, seen)
            more = [] if known else list(node.args)
            if _called(node)[:1].isupper():  # a class: of an error, or of what is reported
                more += [item.value for item in node.keywords]
            if isinstance(node.func, ast.Attribute) and not known:
                more.append(node.func.value)
            elif isinstance(node.func, ast.Name) and node.func.id in _parameters(where.node):
                more.append(node.func)
        elif isinstance(node, (ast.ListComp, ast.GeneratorExp, ast.SetComp)):
            more = [node.elt, *(item.iter for item in node.generators)]
        elif isinstance(node, ast.IfExp):
            more = [node.body, node.orelse]
        elif isinstance(node, ast.Lambda):
            more = [node.body]
        elif isinstance(node, (ast.Compare, ast.Dict, ast.Subscript)):
            more = []
        else:  # lists, sums, `or`, starred items
            more = list(ast.iter_child_nodes(node))
        for item in more:
            yield from self._texts(item, where, seen)

    def _functions(self, call: ast.Call, where: Function) -> List[Function]:
        """The functions that a call may mean: imported, of its file, or the only ones so called."""
        known = self.functions[_called(call)]
        owner = getattr(getattr(call.func, "value", None), "id", "")
        home = self.homes.get((where.file, _called(call)), owner)
        there = [item for item in known if item.file.endswith(f"/{home}.py")]
        here = [item for item in known if item.file == where.file]
        return there or here or (known if len(known) == 1 else [])

    def _named(
        self, name: str, where: Function, seen: Set[Tuple[int, str]]
    ) -> Iterator[Tuple[str, str]]:
        """What a local name, a parameter or a constant may hold."""
        key = (id(where.node), name)
        if key in seen:
            return
        seen.add(key)
        if name in _parameters(where.node):
            place = _parameters(where.node).index(name)
            for call, caller in self.calls[where.name]:
                if where in self._functions(call, caller):
                    yield from self._texts(_argument(call, name, place), caller, seen)
        held = [*_held(where.node, name)]
        for value in held:
            yield from self._texts(value, where, seen)
        for function in self.functions[name]:
            if where.node in function.owners:
                for value in _given_back(function.node):
                    yield from self._texts(value, function, seen)
        if not held:
            for value, home in self.constants[name]:
                yield from self._texts(value, home, seen)


def _leaves(node: ast.AST, where: Function) -> Iterator[ast.AST]:
    """Where messages leave the package: raised, warned of, printed as errors, reported."""
    if isinstance(node, ast.Raise) and node.exc is not None:
        if not (isinstance(node.exc, ast.Call) and _called(node.exc) in PROTOCOL):
            yield node.exc
    elif isinstance(node, ast.Call):
        name = _called(node)
        owner = node.func.value if isinstance(node.func, ast.Attribute) else None
        # The commands print progress and help there; their errors are raised.
        to_stderr = not where.file.startswith("coati_ext/cli/") and any(
            ast.unparse(item.value) == "sys.stderr" for item in node.keywords
        )
        gathered = isinstance(owner, ast.Name) and owner.id in GATHERED and name == "append"
        if name in ("warn", "note", "__init__") or (name == "print" and to_stderr) or gathered:
            yield from node.args[:1]
        elif name in REPORTED:
            yield from node.args
            yield from (item.value for item in node.keywords)
    elif isinstance(node, (ast.Assign, ast.AugAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if any(isinstance(item, ast.Name) and item.id in GATHERED for item in targets):
            yield node.value
    elif isinstance(node, ast.Return) and where.name in RETURNED and node.value is not None:
        yield node.value


def _called(call: ast.Call) -> str:
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def _own(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a function, without those of the functions in it."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield child
            yield from _own(child)


def _given_back(function: ast.AST) -> Iterator[ast.AST]:
    for node in _own(function):
        if isinstance(node, (ast.Return, ast.Yield)) and node.value is not None:
            yield node.value


def _parameters(function: ast.AST) -> List[str]:
    if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return []
    given = function.args
    return [item.arg for item in (*given.args, *given.kwonlyargs) if item.arg != "self"]


def _argument(call: ast.Call, name: str, place: int) -> Optional[ast.AST]:
    named = {item.arg: item.value for item in call.keywords}
    return named.get(name) or (call.args[place] if place < len(call.args) else None)


def _held(function: ast.AST, name: str) -> Iterator[ast.AST]:
    """What is assigned to a local name, or appended to it."""
    for node in _own(function):
        if isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.For)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = {it.id for item in targets for it in ast.walk(item) if isinstance(it, ast.Name)}
            if name in names:
                value = node.iter if isinstance(node, ast.For) else node.value
                if value is not None:
                    yield value
        elif isinstance(node, ast.Call) and _called(node) in ("append", "extend"):
            owner = node.func.value if isinstance(node.func, ast.Attribute) else None
            if isinstance(owner, ast.Name) and owner.id == name:
                yield from node.args
