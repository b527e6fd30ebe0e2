"""Which mutants there are: cosmic-ray's mutations of behaviour, and a fixed sample of them."""

from __future__ import annotations

import ast
import difflib
import hashlib
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

AREAS = {  # a * stands for slashes too
    "tensors": ("coati_ext/tensors/*.py",),
    "engine": ("coati_ext/patching/*.py",),
    "stamp": ("coati_ext/stamp.py", "coati_ext/checkpoints/stamp.py"),
    "patches": ("patches/*.py",),
}
NOT_FILES = ("patches/*__init__.py", "*/sites.py", "*/defects*", "*/options.py", "*/defect.py")
NOT_FUNCTIONS = ("register_*", "measure_*", "Options")  # declarations and measures
NOT_NAMES = ("__all__", "_HOMES")
SEED = "coati-ext"
Place = Tuple[int, str, int]
"""A line, an operator of cosmic-ray, and how many of its places in the file come before."""


@dataclass(frozen=True)
class Mutant:
    """One change of one file."""

    area: str
    file: str
    line: int
    operator: str
    before: str
    after: str
    text: str
    """The whole file, mutated."""

    @property
    def id(self) -> str:
        """Another for another version of the file."""
        return hashlib.sha256(f"{self.file}\n{self.text}".encode()).hexdigest()[:12]


def sample(root: Path, size: int) -> List[Mutant]:
    """Mutants of all files, from each in proportion to how many it has."""
    places: Dict[Tuple[str, str], List[Place]] = {}
    for path in sorted(root.glob("*/**/*.py")):
        file = path.relative_to(root).as_posix()
        for area, patterns in AREAS.items():
            if _matches(file, patterns) and not _matches(file, NOT_FILES):
                places[area, file] = candidates(file, path.read_text("utf-8"))
    total = sum(map(len, places.values()))
    size = min(size, total)
    shares = {key: size * len(items) / total for key, items in places.items()}
    most_cut_off = sorted(shares, key=lambda key: int(shares[key]) - shares[key])
    rounded_up = most_cut_off[: size - sum(map(int, shares.values()))]
    return [
        _made(area, file, (root / file).read_text("utf-8"), *place)
        for (area, file), items in places.items()
        for place in items[: int(shares[area, file]) + ((area, file) in rounded_up)]
    ]


def candidates(file: str, source: str) -> List[Place]:
    """The mutations of a file, shuffled in a way that edits elsewhere do not change.

    Of the many mutations of one line by one family of operators there is one.
    """
    skipped = not_behaviour(ast.parse(source))
    lines, nodes = source.splitlines(), list(ast_nodes(get_ast(source)))
    best: Dict[Tuple[int, str], Tuple[str, Place]] = {}
    for name in operator_names():
        if get_operator(name).arguments():  # names of variables, which it does not come with
            continue
        operator = get_operator(name)()
        found = [start for node in nodes for start, _ in operator.mutation_positions(node)]
        for index, (line, column) in enumerate(found):
            if any(spans(node, line, column) for node in skipped):
                continue
            nth = sum(other == line for other, _ in found[:index])
            text = f"{SEED} {file} {lines[line - 1].strip()} {name} {nth}"
            ranked = (hashlib.sha256(text.encode()).hexdigest(), (line, name, index))
            family = (line, name.split("_")[0])
            if ranked < best.get(family, ("~",)) and _valid(source, name, index):
                best[family] = ranked
    return [place for _, place in sorted(best.values())]


def not_behaviour(tree: ast.Module) -> List[ast.AST]:
    """Annotations and declarations, and the private functions that serve only these."""
    found: List[ast.AST] = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            if _matches(node.name, NOT_FUNCTIONS):
                found.append(node)
            elif getattr(node, "returns", None):
                found.append(node.returns)  # type: ignore[union-attr]
        elif isinstance(node, (ast.arg, ast.AnnAssign)) and node.annotation:
            found.append(node.annotation)
        elif isinstance(node, (ast.If, ast.Assign)):
            what = node.test if isinstance(node, ast.If) else node.targets[0]
            if ast.unparse(what) in ("TYPE_CHECKING", *NOT_NAMES):
                found.append(node)
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    for function in reversed(tree.body):
        if isinstance(function, ast.FunctionDef) and function.name.startswith("_"):
            uses = [name.lineno for name in names if name.id == function.name]
            if uses and all(any(spans(node, line) for node in found) for line in uses):
                found.append(function)
    return found


def spans(node: Any, line: int, column: Optional[int] = None) -> bool:
    """Whether a line, or a place, belongs to a node, decorators included."""
    first = min([node.lineno, *(item.lineno for item in getattr(node, "decorator_list", []))])
    if column is None or first < node.lineno:
        return bool(first <= line <= node.end_lineno)
    start, end = (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)
    return bool(start <= (line, column) < end)


def _valid(source: str, name: str, index: int) -> bool:
    """False for such mutations as of the ``**`` in a dict display."""
    try:
        if "_Mul_" in name or "_Pow_" in name:
            compile(_mutated(source, name, index), "mutant", "exec")
    except SyntaxError:
        return False
    return True


def _mutated(source: str, name: str, index: int) -> str:
    return str(mutate_code(source, get_operator(name)(), index))


def _made(area: str, file: str, source: str, line: int, name: str, index: int) -> Mutant:
    text = _mutated(source, name, index)
    changes = difflib.ndiff(source.splitlines(), text.splitlines())
    added = [change[2:].strip() for change in changes if change.startswith("+ ")]
    before = source.splitlines()[line - 1].strip()
    after = next(filter(None, added), "")
    return Mutant(area, file, line, name.split("/")[-1], before, after, text)


def _matches(name: str, patterns: Tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)
