"""Find coati on disk, tell its generation, and read the source of its functions.

coati is never imported, so this also works on a login node without torch.
"""

from __future__ import annotations

import ast
import sys
import tokenize
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

from coati_ext.errors import CoatiNotFoundError, OldCoatiError
from coati_ext.patching.fingerprint import (
    FunctionNode,
    changed_statements,
    fingerprint,
    likeness,
    statements,
)

_WAY_IN = (
    "install it from ColossalAI's applications/ColossalChat (or applications/Chat) folder, or put "
    "that folder on PYTHONPATH; `coati-ext demo` runs without it"
)


@dataclass(frozen=True)
class Function:
    """The source of one upstream function."""

    file: str
    node: FunctionNode
    lines: Tuple[str, ...]

    @property
    def line(self) -> int:
        """The first line, decorators included, equal to ``co_firstlineno`` of the code object."""
        return min([self.node.lineno, *(item.lineno for item in self.node.decorator_list)])

    @property
    def text(self) -> str:
        """The source text of the function."""
        return "".join(self.lines[self.line - 1 : self.node.end_lineno])

    @cached_property
    def fingerprint(self) -> str:
        """See :func:`coati_ext.patching.fingerprint.fingerprint`."""
        return fingerprint(self.node)

    @property
    def parameters(self) -> Tuple[str, ...]:
        """The names of its parameters, in order."""
        given = self.node.args
        return tuple(item.arg for item in (*given.args, *given.kwonlyargs))

    @property
    def is_descriptor(self) -> bool:
        """Whether it is decorated as a static method, class method or property."""
        names = {_dotted(item) for item in self.node.decorator_list}
        return not names.isdisjoint({"staticmethod", "classmethod", "property"})

    def statement(self, index: int) -> Tuple[int, str]:
        """The line number and first line of the index-th top-level statement."""
        line = statements(self.node)[index].lineno
        return line, self.lines[line - 1].strip()

    def nearest(self, known: Mapping[str, str]) -> Tuple[str, bool, List[int], int]:
        """The label of the most alike of some known fingerprints, and how it differs from that.

        The rest is as from :func:`coati_ext.patching.fingerprint.changed_statements`.
        """
        label = max(known, key=lambda name: likeness(self.fingerprint, known[name]))
        return (label, *changed_statements(self.fingerprint, known[label]))

    def difference(self, known: Mapping[str, str]) -> str:
        """How it differs from the most alike of some known fingerprints, which are by label."""
        if not known:
            return f"was never recorded (fingerprint {self.fingerprint})"
        label, signature, new, missing = self.nearest(known)
        parts = ["its signature"] if signature else []
        for index in new:
            line, text = self.statement(index)
            parts.append(f"line {line} `{text}`")
        if missing:
            parts.append(f"{missing} statement{'s' * (missing > 1)} of upstream's missing")
        told = f"differs from upstream's {label} in {', '.join(parts)}"
        return f"{told} (fingerprint {self.fingerprint})"

    def uses(self, name: str) -> bool:
        """Whether the function uses a dotted name such as ``self.value_head``."""
        return any(_dotted(node) == name for node in ast.walk(self.node))


class OfFunction:
    """What was found of an upstream function: a step of a plan, or something relied on."""

    function: Optional[Function]

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the upstream function found, or an empty string if there is none."""
        return self.function.fingerprint if self.function else ""


@dataclass(frozen=True)
class Coati:
    """The package that ``import coati`` would import."""

    root: Path
    generation: str

    def function(self, module: str, qualname: str) -> Optional[Function]:
        """The source of ``module:qualname``, or ``None`` if it does not exist in this release.

        The module may also belong to another installed package, such as colossalai.

        Raises:
            CoatiNotFoundError: the module's file cannot be read or parsed.
        """
        file = self._file(module)
        return None if file is None else _find(file, qualname)

    def has_class(self, module: str, qualname: str) -> bool:
        """Whether ``module`` defines a class of that name.

        Raises:
            CoatiNotFoundError: the module's file cannot be read or parsed.
        """
        file = self._file(module)
        if file is None:
            return False
        tree, _ = _parse(file, file.stat().st_mtime_ns)
        return _body(tree, qualname.split(".")) is not None

    def _file(self, module: str) -> Optional[Path]:
        package = module.split(".")[0]
        root = self.root if package == "coati" else _package_root(package)
        return None if root is None else _module_file(root, module)


def find_coati() -> Coati:
    """Find the importable coati and its generation without importing it.

    Raises:
        CoatiNotFoundError: there is none, or it is not ColossalAI Chat.
    """
    root = _package_root("coati")
    if root is None:
        chatgpt = _package_root("chatgpt")
        if chatgpt is not None and (chatgpt / "models" / "base" / "reward_model.py").is_file():
            raise OldCoatiError(
                f"coati is not importable, but its predecessor chatgpt is, at {chatgpt} "
                "(ColossalAI v0.2.5 to v0.2.7). coati-ext knows coati, which v0.2.8 introduced: "
                "update ColossalAI"
            )
        raise CoatiNotFoundError(f"coati is not importable by {sys.executable}: {_WAY_IN}")
    if not (root / "__init__.py").is_file():
        what = (
            "has no __init__.py, so it is a namespace package" if root.is_dir() else "is no folder"
        )
        raise CoatiNotFoundError(f"the coati at {root} {what}, and not ColossalAI Chat: {_WAY_IN}")
    return Coati(root, generation_of(root))


def generation_of(root: Path) -> str:
    """Tell the generation of a coati package from its structure.

    The experience maker's constructor gained an argument in each generation (G2 ``tokenizer``, G3
    ``gamma``, G4 ``use_grpo``), and in G3 the reward model moved out of ``models/base/``. The
    version string does not help: it is ``1.0.0`` in every release.

    Raises:
        CoatiNotFoundError: the structure matches no generation.
    """
    init = None
    maker = root / "experience_maker" / "naive.py"
    if maker.is_file():
        init = _find(maker, "NaiveExperienceMaker.__init__")
    names = {item.arg for item in init.node.args.args} if init else set()
    if (root / "models" / "base" / "reward_model.py").is_file() and maker.is_file():
        if "gamma" not in names:
            return "G2" if "tokenizer" in names else "G1"
    elif (root / "models" / "reward_model.py").is_file() and "gamma" in names:
        return "G4" if "use_grpo" in names else "G3"
    raise CoatiNotFoundError(
        f"the coati at {root} is no known generation of ColossalAI Chat: expected "
        "models/base/reward_model.py (G1, G2) or models/reward_model.py (G3, G4) beside "
        "experience_maker/naive.py with a NaiveExperienceMaker. If it is another package of that "
        f"name, {_WAY_IN}"
    )


def dotted_file(module: str) -> Optional[Path]:
    """The file of any importable module, without executing it."""
    try:
        spec = find_spec(module)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec is not None and spec.origin else None


def function_in(file: Path, qualname: str) -> Optional[Function]:
    """The source of a function in a file, or ``None``."""
    return _find(file, qualname)


def with_helpers(file: Path, name: str) -> List[Function]:
    """A function and the functions of the same file that it calls, directly or indirectly."""
    found: Dict[str, Function] = {}
    waiting = [name]
    while waiting:
        name = waiting.pop(0)
        function = _find(file, name)
        if function is not None and name not in found:
            found[name] = function
            calls = [node.func for node in ast.walk(function.node) if isinstance(node, ast.Call)]
            waiting += [call.id for call in calls if isinstance(call, ast.Name)]
    return list(found.values())


def _package_root(name: str) -> Optional[Path]:
    if name in sys.modules:
        paths = getattr(sys.modules[name], "__path__", None)
    else:
        try:
            spec = find_spec(name)
        except (ImportError, ValueError):
            return None
        if spec is None:
            return None
        if spec.submodule_search_locations is None:
            raise CoatiNotFoundError(
                f"{name} at {spec.origin} is a single file, not ColossalAI Chat: {_WAY_IN}"
            )
        paths = spec.submodule_search_locations
    first = next(iter(paths or ()), None)
    return Path(first) if first is not None else None


def _module_file(root: Path, module: str) -> Optional[Path]:
    base = root.joinpath(*module.split(".")[1:])
    for file in (base.with_suffix(".py"), base / "__init__.py"):
        if file.is_file():
            return file
    return None


def _find(file: Path, qualname: str) -> Optional[Function]:
    return _function(file, file.stat().st_mtime_ns, qualname)


@lru_cache(maxsize=512)  # with its fingerprint, which every plan asks for
def _function(file: Path, modified_ns: int, qualname: str) -> Optional[Function]:
    tree, lines = _parse(file, modified_ns)
    *owners, name = qualname.split(".")
    body = _body(tree, owners)
    if body is None:
        return None
    functions = [
        node
        for node in body
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == name
    ]
    return Function(str(file), functions[-1], lines) if functions else None


def _body(tree: ast.Module, classes: Sequence[str]) -> Optional[List[ast.stmt]]:
    """The statements of a module, or of a class in it."""
    body: List[ast.stmt] = tree.body
    for name in classes:
        found = [node for node in body if isinstance(node, ast.ClassDef) and node.name == name]
        if not found:
            return None
        body = found[-1].body
    return body


@lru_cache(maxsize=64)
def _parse(file: Path, modified_ns: int) -> Tuple[ast.Module, Tuple[str, ...]]:
    try:
        with tokenize.open(str(file)) as stream:
            text = stream.read()
        return ast.parse(text), tuple(text.splitlines(keepends=True))
    except (OSError, SyntaxError, ValueError) as error:  # such as a null byte, on old Pythons
        raise CoatiNotFoundError(f"cannot read {file}: {error}") from error


def _dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        owner = _dotted(node.value)
        return f"{owner}.{node.attr}" if owner else ""
    return ""
