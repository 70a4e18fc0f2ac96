"""Hash of the code that an outcome ran: a method, its evidence, and every definition of foveal that these use.

Names are followed from definition to definition, through imports wherever they stand, so an outcome stays valid when
something beside its code changes in a file that it uses. What a file does when it is imported, such as registering an
operator, counts for all who import it, directly or indirectly. Words about code do not count (`statements`), nor does
the vocabulary of claims (`foveal.record`), which computes nothing; the version of the native kernels does, through the
definition that names it. Not followed: names that are put together at run time.
"""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from foveal.evidence.statements import Source, hashed, imported, read, walked

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["closure", "closure_hash", "definitions"]

ROOT = Path(__file__).resolve().parent.parent
WORDS = (
    *("foveal.record", "foveal.cases", "foveal.errors"),
    *("foveal.evidence.rehearsal", "foveal.evidence.closure", "foveal.evidence.statements"),
)
EFFECTS, WHOLE = "(effects)", "(whole)"


@cache
def _file(module: str, root: Path) -> Path | None:
    base = root.joinpath(*module.split(".")[1:])
    for path in (base.with_suffix(".py") if base != root else base / "__init__.py", base / "__init__.py"):
        if path.is_file():
            return path
    return None


@cache
def _imports(module: str, path: Path, root: Path) -> tuple[tuple[str, Path], ...]:
    """Modules of the package that a file imports anywhere in its code, except for type checkers."""
    top = module.split(".", maxsplit=1)[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = imported(tree.body, module, package=path.name == "__init__.py").values()
    wanted = {base for base, _ in found} | {f"{base}.{name}" for base, name in found if name}
    files = ((name, _file(name, root)) for name in wanted if name.split(".")[0] == top and name != top)
    return tuple(sorted({(name, found) for name, found in files if found is not None}))


def closure(modules: list[str], *, root: Path = ROOT) -> dict[str, Path]:
    """Modules that the given ones import directly or indirectly, including themselves.

    Args:
        modules: dotted names of modules of the package.
        root: folder of the package.

    Returns:
        Path by dotted name, sorted by name.
    """
    found: dict[str, Path] = {}
    waiting = [(name, path) for name in modules if (path := _file(name, root)) is not None]
    while waiting:
        name, path = waiting.pop()
        if name in found or name in WORDS:
            continue
        found[name] = path
        waiting += _imports(name, path, root)
    return dict(sorted(found.items()))


class _Walk:
    """Follows names from definition to definition."""

    def __init__(self, root: Path, top: str) -> None:
        self.root, self.top = root, top
        self.found: dict[tuple[str, str], str] = {}  # hash of each definition, "" of what has no code of its own
        self.waiting: list[tuple[str, str]] = []
        self.outside: dict[str, str] = {}

    def source(self, module: str) -> Source | None:
        path = _file(module, self.root) if module.partition(".")[0] == self.top and module != self.top else None
        return read(path, module) if path is not None and module not in WORDS else None

    def run(self) -> None:
        while self.waiting:
            module, name = self.waiting.pop()
            source = self.source(module)
            if source is None or (module, name) in self.found:
                continue
            if name == WHOLE:
                self.found[module, name] = ""
                self.waiting += [(module, EFFECTS), *((module, each) for each in source.definitions)]
            elif name == EFFECTS or name in source.definitions:
                waiting, outside, self.found[module, name] = _used(module, name, self.root, self.top)
                self.waiting += waiting
                self.outside |= outside
            elif name in source.imports:
                self.found[module, name] = ""
                self.reach(*source.imports[name])
            elif "__getattr__" in source.definitions:
                self.waiting.append((module, WHOLE))

    def reach(self, module: str, name: str, rest: tuple[str, ...] = ()) -> None:
        """Wait for a name of a module, or for an attribute of the module that the name stands for."""
        source, own = self.source(module), (module, name)
        if not name:
            if not rest:
                self.waiting.append((module, WHOLE))
            else:
                self.reach(module, rest[0], rest[1:])
        elif source and name not in source.definitions and source.imports.get(name, own) != own:
            self.reach(*source.imports[name], rest)
        elif (source is None or name not in source.definitions) and _file(f"{module}.{name}", self.root):
            self.reach(f"{module}.{name}", "", rest)
        else:
            self.waiting.append(own)

    def follow(self, source: Source, nodes: Iterable[ast.AST]) -> None:
        """Wait for all that statements of a file name."""
        nodes = list(nodes)
        bound = source.imports | imported(nodes, source.module, package=source.package)
        seen: set[int] = set()
        for node in walked(nodes):  # an attribute comes before what it is an attribute of
            if id(node) in seen or not isinstance(node, ast.Attribute | ast.Name):
                continue
            chain: list[str] = []
            base: ast.AST = node
            while isinstance(base, ast.Attribute):
                chain.insert(0, base.attr)
                base = base.value
                seen.add(id(base))
            if not isinstance(base, ast.Name):
                seen -= {id(base)}
            elif base.id in source.definitions:
                self.waiting.append((source.module, base.id))
            elif base.id in bound:
                self.reach(*bound[base.id], tuple(chain))
                if bound[base.id][0].split(".")[0] != self.top:
                    self.outside[f"{source.module} {base.id}"] = ".".join(bound[base.id])


@cache
def _used(module: str, name: str, root: Path, top: str) -> tuple[list[tuple[str, str]], dict[str, str], str]:
    """What a definition names inside of the package and outside, and its hash; the same for all who use it."""
    walk = _Walk(root, top)
    source = walk.source(module)
    assert source is not None
    nodes = source.effects if name == EFFECTS else source.definitions[name]
    walk.follow(source, nodes)
    return walk.waiting, walk.outside, hashed(nodes) if nodes else ""


def definitions(modules: list[str], *, root: Path = ROOT) -> dict[str, str]:
    """What the given modules use, directly or indirectly, including all of their own.

    Args:
        modules: dotted names of modules of the package.
        root: folder of the package.

    Returns:
        By "module name": the hash of a definition, or what else the name is imported from, sorted.
    """
    modules = [module for module in modules if module]
    walk = _Walk(root, modules[0].split(".", maxsplit=1)[0] if modules else "")
    walk.waiting = [(module, WHOLE) for module in modules]
    walk.waiting += [(module, EFFECTS) for module in closure(modules, root=root)]
    walk.run()
    found = {f"{module} {name}": code for (module, name), code in walk.found.items() if code}
    return dict(sorted((walk.outside | found).items()))


def closure_hash(modules: list[str], *, root: Path = ROOT) -> str:
    """Hash that tells whether recorded results of these modules are still valid for the current code.

    Args:
        modules: dotted names of a method's module and its evidence.
        root: folder of the package.

    Returns:
        Sixteen hexadecimal digits.
    """
    text = "\n".join(f"{name} {code}" for name, code in definitions(modules, root=root).items())
    return hashlib.sha256(text.encode()).hexdigest()[:16]
