"""Statements of a Python file that compute something, as plain tuples.

Docstrings, comments, annotations, `__all__`, imports for type checkers, typing overloads and the texts of errors are
words about code: two files that differ in these alone are the same.
"""

from __future__ import annotations

import ast
import hashlib
from dataclasses import dataclass, field
from functools import cache
from importlib.util import resolve_name
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

__all__ = ["Source", "hashed", "imported", "read", "walked"]

# Decorators that only wrap a definition; under any other, importing the file may register it somewhere.
WRAPPERS = (
    *("dataclass", "overload", "runtime_checkable", "contextmanager", "cached", "cache", "lru_cache", "jit"),
    *("no_grad", "enable_grad", "inference_mode", "assume_constant_result"),
)


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _called(node: ast.AST) -> str:
    """Last name of a decorator, with or without arguments."""
    node = node.func if isinstance(node, ast.Call) else node
    return str(getattr(node, "id", getattr(node, "attr", "")))


def _is_words(node: ast.AST) -> bool:
    """Whether a statement is about code and does nothing."""
    if isinstance(node, ast.If):
        return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING" and not node.orelse
    if isinstance(node, ast.Assign):
        return any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets)
    return _is_docstring(node) or any(_called(d) == "overload" for d in getattr(node, "decorator_list", ()))


def _plain(node: object, *, words: bool = False) -> object:
    """A node as nested tuples that do not depend on Python's version; `words` blanks strings, those of an error."""
    if isinstance(node, list):
        return tuple(_plain(item, words=words) for item in node if not (isinstance(item, ast.AST) and _is_words(item)))
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


def hashed(nodes: Iterable[ast.AST]) -> str:
    """Hash of statements.

    Args:
        nodes: statements, in order.

    Returns:
        Sixteen hexadecimal digits.
    """
    return hashlib.sha256(repr(_plain(list(nodes))).encode()).hexdigest()[:16]


def walked(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Nodes at any depth, without annotations and what hides from everything but type checkers.

    Args:
        nodes: statements.

    Yields:
        Nodes.
    """
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if _is_words(node):
            continue
        yield node
        for name, value in ast.iter_fields(node):
            if name not in ("annotation", "returns"):
                waiting += [
                    part for part in (value if isinstance(value, list) else [value]) if isinstance(part, ast.AST)
                ]


def imported(nodes: Iterable[ast.AST], module: str, *, package: bool) -> dict[str, tuple[str, str]]:
    """What import statements at any depth bind.

    Args:
        nodes: statements.
        module: dotted name of the module that they stand in.
        package: whether that is the `__init__` of a package.

    Returns:
        By bound name, a module and the name in it, empty for the module itself.
    """
    found: dict[str, tuple[str, str]] = {}
    for node in walked(nodes):
        if isinstance(node, ast.Import):
            for name in node.names:
                found[name.asname or name.name.partition(".")[0]] = (
                    name.name if name.asname else name.name.partition(".")[0],
                    "",
                )
                if not name.asname:
                    found[name.name] = (name.name, "")  # so that all that is imported is known
        elif isinstance(node, ast.ImportFrom):
            inside = module if package else module.rpartition(".")[0]
            base = resolve_name("." * node.level + (node.module or ""), inside) if node.level else node.module or ""
            found.update({name.asname or name.name: (base, name.name) for name in node.names})
    return found


def _bound(node: ast.AST) -> set[str]:
    """Names that a definition or an assignment binds; none for an element or an attribute of something."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", node)]
    parts = [part for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)]
    return {part.id for part in parts if isinstance(part.ctx, ast.Store)}


@dataclass
class Source:
    """A file, taken apart.

    Args:
        module: its dotted name.
        package: whether it is the `__init__` of a package.
        definitions: statements that bind each name, in order.
        imports: what imports outside of functions bind, as `imported` returns it.
        effects: statements that do more than bind a name, such as a call that registers something.
    """

    module: str
    package: bool
    definitions: dict[str, list[ast.stmt]] = field(default_factory=dict)
    imports: dict[str, tuple[str, str]] = field(default_factory=dict)
    effects: list[ast.stmt] = field(default_factory=list)

    def take(self, statements: Iterable[ast.stmt]) -> None:
        """Sort statements of the file into definitions, imports and effects.

        Args:
            statements: statements outside of functions.
        """
        for node in statements:
            if _is_words(node):
                continue
            if isinstance(node, ast.Import | ast.ImportFrom):
                self.imports.update(imported([node], self.module, package=self.package))
                continue
            defines = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            assigns = isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign)
            names = _bound(node) if defines or assigns else set()
            if not (defines or assigns):  # a branch, a loop, a call: what it defines is itself, whole
                self.imports.update(imported([node], self.module, package=self.package))
                for part in ast.walk(node):
                    names |= {part.name} if isinstance(part, ast.FunctionDef | ast.ClassDef) else set()
                    names |= {part.id} if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store) else set()
            registers = any(_called(d) not in WRAPPERS for d in getattr(node, "decorator_list", ()))
            for name in names:
                self.definitions.setdefault(name, []).append(node)
            if registers or not names:
                self.effects.append(node)


@cache
def read(path: Path, module: str) -> Source:
    """Take a file apart.

    Args:
        path: path of a Python file.
        module: its dotted name.

    Returns:
        Its definitions, imports and effects.
    """
    source = Source(module, path.name == "__init__.py")
    source.take(ast.parse(path.read_text(encoding="utf-8")).body)
    return source
