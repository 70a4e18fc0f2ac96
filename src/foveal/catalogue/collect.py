"""Finds the records (`METHOD` or `METHODS`) that stand beside the code.

Files are searched as text first; only those that hold a record are imported, so a module without one costs nothing and
may need whatever it likes.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from foveal.catalogue.entries import entries, fold
from foveal.record import Method

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["CatalogueError", "Located", "Missing", "closest", "collect", "find", "modules", "records", "unreadable"]

SKIPPED = ("cli", "serve", "catalogue")  # these read records, they hold none
_HOLDS_RECORD = re.compile(r"^METHODS?\s*(?::[^=\n]+)?=(?!=)", re.MULTILINE)


class CatalogueError(ValueError):
    """The records do not fit together, or there is none of that name."""


@dataclass(frozen=True)
class Located:
    """A record and where it stands.

    Args:
        method: the record.
        module: dotted name of the module that holds it.
        path: file of that module.
    """

    method: Method
    module: str
    path: Path


@dataclass(frozen=True)
class Missing:
    """A module that holds a record and cannot be imported, because a package it needs is not installed.

    Args:
        module: dotted name.
        path: its file.
        package: what is not installed.
        ids: rows of the catalogue its records name, read from the text.
    """

    module: str
    path: Path
    package: str
    ids: tuple[int, ...] = ()


def modules(folder: Path, package: str) -> list[tuple[str, Path]]:
    """Modules below a folder whose text has a record at its top level; imports nothing.

    Args:
        folder: of the package.
        package: its dotted name.

    Returns:
        Dotted name and file, sorted by file.
    """
    found = []
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        if parts[0] in SKIPPED or not _HOLDS_RECORD.search(path.read_text(encoding="utf-8")):
            continue
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        found.append((".".join((package, *parts)), path))
    return found


def collect(sources: Iterable[tuple[str, Path]]) -> tuple[dict[str, Located], list[Missing]]:
    """Import the modules that hold records and check that the records fit together.

    Args:
        sources: module and file, as `modules` gives them.

    Returns:
        Records by name, sorted, and the modules that a missing package keeps from being read.

    Raises:
        CatalogueError: two records share an id, a name or a model name; an id the catalogue does not have or whose
            row has another name; a `METHOD` that is no record.
    """
    found: list[Located] = []
    missing: list[Missing] = []
    for module, path in sources:
        try:
            loaded = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if not error.name or error.name.split(".")[0] == "foveal":
                raise
            missing.append(Missing(module, path, error.name.split(".")[0], _ids(path)))
            continue
        held = (*getattr(loaded, "METHODS", ()), *([loaded.METHOD] if hasattr(loaded, "METHOD") else []))
        for method in held:
            if not isinstance(method, Method):
                got = type(method).__name__
                raise CatalogueError(f"{path}: METHOD must be a foveal.record.Method, METHODS a tuple of it; got {got}")
            found.append(Located(method, module, path))
    _check(found)
    return {item.method.name: item for item in sorted(found, key=lambda item: fold(item.method.name))}, missing


def _ids(path: Path) -> tuple[int, ...]:
    """Ids that the calls of `Method` in a file are given as plain numbers."""
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    return tuple(
        word.value.value
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id == "Method"
        for word in call.keywords
        if word.arg == "id" and isinstance(word.value, ast.Constant) and isinstance(word.value.value, int)
    )


def _check(found: list[Located]) -> None:
    """Raise when records contradict each other or the catalogue."""
    seen: dict[tuple[str, object], Located] = {}
    names = {fold(entry.name): entry.id for entry in entries().values()}
    for item in found:
        method = item.method
        keys: list[tuple[str, object]] = [("name", fold(method.name)), *(("model", name) for name in method.models)]
        if method.id is not None:
            keys.append(("id", method.id))
        for key in keys:
            if other := seen.get(key):
                raise CatalogueError(
                    f"{key[0]} {key[1]!r} is taken twice: by {other.method.name} in {other.path} and by {method.name} "
                    f"in {item.path}; change one of them"
                )
            seen[key] = item
        row = names.get(fold(method.name))
        if method.id is None and row is not None:
            raise CatalogueError(
                f"{item.path}: {method.name} is row {row} of the catalogue, its record has id None; give it id={row}"
            )
        if method.id is not None and method.id not in entries():
            raise CatalogueError(
                f"{item.path}: {method.name} has id {method.id}, which the catalogue does not have; its ids are "
                f"1 to {max(entries())}, and None is for foveal's own work"
            )
        if method.id is not None and fold(entries()[method.id].name) != fold(method.name):
            raise CatalogueError(
                f"{item.path}: id {method.id} is {entries()[method.id].name} in the catalogue, the record says "
                f"{method.name}; correct the id or the name"
            )


def _sources() -> list[tuple[str, Path]]:
    return modules(Path(__file__).resolve().parent.parent, "foveal")


@cache
def _collected() -> tuple[dict[str, Located], list[Missing]]:
    return collect(_sources())


def records() -> dict[str, Located]:
    """Every record of the package that can be read with what is installed.

    Returns:
        Name → record, sorted by name.
    """
    return dict(_collected()[0])


def unreadable() -> list[Missing]:
    """Modules that hold a record and need a package that is not installed.

    Returns:
        One entry for each module.
    """
    return list(_collected()[1])


def closest(name: str, known: Iterable[str]) -> list[str]:
    """The three names nearest to a misspelt one.

    Args:
        name: as typed.
        known: names to choose from.

    Returns:
        At most three, nearest first.
    """
    by_fold = {fold(candidate): candidate for candidate in known}
    return [by_fold[near] for near in difflib.get_close_matches(fold(name), by_fold, n=3, cutoff=0.0)]


def find(name: str, among: Mapping[str, Located] | None = None) -> Located:
    """One record by name; case, spaces, hyphens and underscores do not count.

    Args:
        name: of the method.
        among: records to look through; None looks through `records()`.

    Returns:
        The record.

    Raises:
        CatalogueError: no record of that name. The text gives the three closest, or says that the row exists and has
            no record yet.
    """
    known = records() if among is None else among
    for item in known.values():
        if fold(item.method.name) == fold(name):
            return item
    hint = f"the closest are {', '.join(closest(name, known))}" if known else "there are no records at all"
    if row := next((entry for entry in entries().values() if fold(entry.name) == fold(name)), None):
        text = f"{row.name} is row {row.id} of the catalogue but has no record here yet; {hint}"
    else:
        text = f"no record is called {name!r}; {hint}"
    if among is None and (missing := unreadable()):
        packages = ", ".join(sorted({item.package for item in missing}))
        text += f"; {len(missing)} more cannot be read without {packages}: pip install foveal[torch]"
    raise CatalogueError(text)
