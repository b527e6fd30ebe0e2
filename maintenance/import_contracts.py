"""Two kinds of contract that import-linter lacks; ``pyproject.toml`` says what they are held to."""

from __future__ import annotations

import ast
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import FrozenSet, Iterator, List

from graphlib import CycleError, TopologicalSorter
from grimp import ImportGraph
from importlinter import Contract, ContractCheck, output
from importlinter.contracts.forbidden import ForbiddenContract


class ModuleLevelContract(ForbiddenContract):
    """As ``forbidden``, but of imports that run with the module: those in functions may stay.

    So a package can use torch or coati without loading it before it is needed.
    """

    type_name = "module_level"

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Check the graph without the imports inside functions."""
        for importer in sorted(graph.modules):
            if graph.is_module_squashed(importer):  # another distribution
                continue
            inside = _lines_of_functions(importer)
            for imported in graph.find_modules_directly_imported_by(importer):
                details = graph.get_import_details(importer=importer, imported=imported)
                if all(detail["line_number"] in inside for detail in details):
                    graph.remove_import(importer=importer, imported=imported)
        return super().check(graph, verbose)


class AcyclicContract(Contract):
    """No module imports another that imports it in turn, inside functions or not."""

    type_name = "acyclic"

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Sort all modules; where that fails there is a circle."""
        imports = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
        circle: List[str] = []
        try:
            TopologicalSorter(imports).prepare()
        except CycleError as error:
            circle = error.args[1]
        return ContractCheck(kept=not circle, metadata={"circle": circle})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Print the circle."""
        output.print_error(" is imported by ".join(check.metadata["circle"]))


@lru_cache(maxsize=None)
def _lines_of_functions(module: str) -> FrozenSet[int]:
    tree = ast.parse(_file_of(module).read_text(encoding="utf-8"))
    return frozenset(_inner_lines(tree))


def _file_of(module: str) -> Path:
    package, *names = module.split(".")
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    file = Path(spec.origin).parent.joinpath(*names)
    return file / "__init__.py" if file.is_dir() else file.with_suffix(".py")


def _inner_lines(tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from range(node.lineno, (node.end_lineno or node.lineno) + 1)
