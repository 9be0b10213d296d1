"""Draw which folders of sohes_d2 import which, as the Mermaid graph of CONTRIBUTING.md, from the code itself.

    make imports

Imports inside functions are included, those for type checking are not. Transitive arrows are omitted.
"""

from __future__ import annotations

import argparse
import ast
import graphlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "sohes_d2"
PAGE = REPOSITORY / "CONTRIBUTING.md"
START, END = "```mermaid\n", "```\n"
TOP = "sohes_d2"  # modules that are not in a folder


def module_name(path: Path) -> str:
    """The dotted name of a file of the package."""
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


def imported_modules(path: Path) -> list[str]:
    """Absolute names of all imports of a file, also inside functions, in line order."""
    package = path.relative_to(REPOSITORY).parent.parts
    names: list[tuple[int, str]] = []
    for node in _nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (start, node.module) if part)
            # in `from package import module` the imported name may be a module
            names += [(node.lineno, f"{module}.{alias.name}") for alias in node.names]
    return [name for _, name in sorted(names)]


def _nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes of a tree except those under ``if TYPE_CHECKING``."""
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _nodes(child)


def import_graph() -> dict[str, set[str]]:
    """Module of the package -> modules of the package that it imports."""
    files = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
    graph: dict[str, set[str]] = {name: set() for name in files}
    for name, path in files.items():
        for imported in imported_modules(path):
            while imported and imported not in files:
                imported = imported.rpartition(".")[0]
            if imported and imported != name:
                graph[name].add(imported)
    return graph


def folder_of(module: str) -> str:
    """The folder of the package that a module is in, or `TOP`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and (PACKAGE / parts[1]).is_dir() else TOP


def folder_graph() -> dict[str, set[str]]:
    """Folder -> folders that it imports, without top-level modules, which all may import."""
    graph: dict[str, set[str]] = defaultdict(set)
    for module, imported in import_graph().items():
        for other in imported:
            pair = folder_of(module), folder_of(other)
            if pair[0] != pair[1] and TOP not in pair:
                graph[pair[0]].add(pair[1])
    return dict(graph)


def mermaid() -> str:
    """The graph of the folders without transitive arrows."""
    graph = folder_graph()
    below: dict[str, set[str]] = {}  # all folders reachable from a folder
    for folder in graphlib.TopologicalSorter(graph).static_order():
        others = graph.get(folder, set())
        below[folder] = others.union(*(below[other] for other in others))
    lines = ["graph TD"]
    for folder in sorted(graph):
        for other in sorted(graph[folder]):
            if not any(other in below[between] for between in graph[folder]):
                lines.append(f"    {folder} --> {other}")
    return "\n".join(lines) + "\n"


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    text = PAGE.read_text(encoding="utf-8")
    start = text.index(START) + len(START)
    PAGE.write_text(text[:start] + mermaid() + text[text.index(END, start) :], encoding="utf-8")


if __name__ == "__main__":
    main()
