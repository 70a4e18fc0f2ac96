"""Hash of the code that an outcome ran: the method, its evidence, and every foveal module that these import.

Two files are the same if their statements are: docstrings, comments, annotations, `__all__`, imports for type checkers
and typing overloads do not count. The vocabulary of claims (`foveal.record`) computes nothing and does not count
either; the version of the native kernels does, through the module that names it.
"""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from importlib.util import resolve_name
from pathlib import Path

__all__ = ["closure", "closure_hash", "code_hash"]

ROOT = Path(__file__).resolve().parent.parent
WORDS = ("foveal.record", "foveal.cases", "foveal.errors", "foveal.evidence.rehearsal")


def _type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _overload(node: ast.AST) -> bool:
    decorators = getattr(node, "decorator_list", ())
    return any(getattr(d, "id", getattr(d, "attr", "")) == "overload" for d in decorators)


def _docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _names(node: ast.AST) -> bool:
    return isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets)


def _plain(node: object, *, words: bool = False) -> object:
    """A node as nested tuples that do not depend on Python's version; `words` blanks strings, those of an error."""
    if isinstance(node, list):
        return tuple(
            _plain(item, words=words)
            for item in node
            if not (
                isinstance(item, ast.AST)
                and (_type_checking(item) or _overload(item) or _docstring(item) or _names(item))
            )
        )
    if not isinstance(node, ast.AST):
        return repr(node)
    words = words or isinstance(node, ast.Raise)
    if words and (isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))):
        return "words"
    skipped = ("ctx", "kind", "type_comment", "type_params", "annotation", "returns", "simple")
    fields = ((name, value) for name, value in ast.iter_fields(node) if name not in skipped)
    return (
        type(node).__name__,
        *((name, _plain(value, words=words)) for name, value in fields if value not in (None, [])),
    )


@cache
def code_hash(path: Path) -> str:
    """Hash of the statements of a file.

    Args:
        path: path of a Python file.

    Returns:
        Sixteen hexadecimal digits.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return hashlib.sha256(repr(_plain(tree.body)).encode()).hexdigest()[:16]


def _file(module: str, root: Path) -> Path | None:
    base = root.joinpath(*module.split(".")[1:])
    for path in (base.with_suffix(".py") if base != root else base / "__init__.py", base / "__init__.py"):
        if path.is_file():
            return path
    return None


@cache
def _imports(module: str, path: Path, root: Path) -> tuple[tuple[str, Path], ...]:
    """Modules of the package that a file imports anywhere in its code, except for type checkers."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    top = module.split(".", maxsplit=1)[0]
    wanted: list[str] = []
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if _type_checking(node):
            waiting += getattr(node, "orelse", [])
            continue
        if isinstance(node, ast.Import):
            wanted += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module or ""
            wanted += [base, *(f"{base}.{name.name}" for name in node.names)]
        waiting += ast.iter_child_nodes(node)
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


def closure_hash(modules: list[str], *, root: Path = ROOT) -> str:
    """Hash that tells whether recorded results of these modules are still valid for the current code.

    Args:
        modules: dotted names of a method's module and its evidence.
        root: folder of the package.

    Returns:
        Sixteen hexadecimal digits.
    """
    text = "\n".join(f"{name} {code_hash(path)}" for name, path in closure(modules, root=root).items())
    return hashlib.sha256(text.encode()).hexdigest()[:16]
