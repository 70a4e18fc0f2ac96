"""Collects the records beside the code and their evidence.

The index (`foveal.index`) lists the files with a record; they are imported on request, each with its evidence. A file
that needs a missing package is reported and does not prevent others from being read.
"""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING

from foveal._install import install_hint
from foveal.catalogue.entries import entries, fold
from foveal.errors import FovealError
from foveal.evidence.closure import closure_hash
from foveal.index import Indexed, evidence_of, index
from foveal.record import Claim, Method

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path
    from types import ModuleType

__all__ = [
    "CatalogueError",
    "Located",
    "Missing",
    "closest",
    "collect",
    "find",
    "locate",
    "records",
    "some",
    "unreadable",
]


class CatalogueError(FovealError, ValueError):
    """Records that contradict the catalogue, or an unknown name."""


@dataclass(frozen=True)
class Located:
    """A record, its location and its evidence.

    Args:
        method: record of the method.
        module: dotted name of the module that defines it.
        path: path of that module.
        claims: claims of its evidence.
        evidence: dotted name of the module that defines the claims.
    """

    method: Method
    module: str
    path: Path
    claims: tuple[Claim, ...] = ()
    evidence: str = ""

    @cached_property
    def source(self) -> str:
        """Hash of the code that the claims run."""
        return closure_hash([self.module, self.evidence])


@dataclass(frozen=True)
class Missing:
    """A record that cannot be read because a package that its file or its evidence needs is not installed.

    Args:
        indexed: record as read from the text of its file.
        package: name of the missing package.
    """

    indexed: Indexed
    package: str


def _imported(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] != module.split(".", maxsplit=1)[0]:
            raise  # a package that is not installed
        raise CatalogueError(
            f"{module} cannot be imported ({error}); a method and its evidence have the same path, one below foveal, "
            "the other below foveal.evidence"
        ) from error


def locate(item: Indexed) -> Located | Missing:
    """Import one record and its evidence, and check that they are consistent.

    Args:
        item: entry of `foveal.index`.

    Returns:
        The record with its claims, or the package it lacks.

    Raises:
        CatalogueError: a method without evidence, or evidence without claims; an id that is not in the catalogue or
            whose row has another name; a claim that answers no clause of the row and names no promise beyond it, or
            that answers a clause the row does not have.
    """
    evidence = evidence_of(item.module)
    try:
        method = getattr(_imported(item.module), "METHOD", None)
        claims = getattr(_imported(evidence), "CLAIMS", None)
    except ModuleNotFoundError as error:
        return Missing(item, str(error.name).split(".")[0])
    if not isinstance(method, Method):
        raise CatalogueError(f"{item.path}: METHOD must be a foveal.record.Method, got {type(method).__name__}")
    if not (isinstance(claims, tuple) and claims and all(isinstance(claim, Claim) for claim in claims)):
        raise CatalogueError(f"{evidence} must hold CLAIMS, a tuple of at least one claim; got {claims!r:.80}")
    located = Located(method, item.module, item.path, claims, evidence)
    _check(located)
    return located


def collect(sources: Iterable[Indexed]) -> tuple[dict[str, Located], list[Missing]]:
    """Import records and their evidence.

    Args:
        sources: entries of `foveal.index.scan`.

    Returns:
        Records by name, sorted, and the records that cannot be read because of a missing package.
    """
    found = [locate(item) for item in sources]
    located = sorted((item for item in found if isinstance(item, Located)), key=lambda item: fold(item.method.name))
    return {item.method.name: item for item in located}, [item for item in found if isinstance(item, Missing)]


def _check(item: Located) -> None:
    """Raise if a record or its claims contradict the catalogue."""
    method = item.method
    if method.id is None:
        row = next((entry.id for entry in entries().values() if fold(entry.name) == fold(method.name)), None)
        if row is not None:
            raise CatalogueError(
                f"{item.path}: {method.name} is row {row} of the catalogue, its record has id None; give it id={row}"
            )
        return
    if method.id not in entries():
        raise CatalogueError(
            f"{item.path}: {method.name} has id {method.id}, which the catalogue does not have; its ids are "
            f"1 to {max(entries())}, and None is for foveal's own work"
        )
    entry = entries()[method.id]
    if fold(entry.name) != fold(method.name):
        raise CatalogueError(
            f"{item.path}: id {method.id} is {entry.name} in the catalogue, the record says {method.name}; correct "
            "the id or the name"
        )
    for claim in item.claims:
        if not claim.clause and not claim.beyond:
            raise CatalogueError(
                f"{item.evidence}: {claim.says!r} answers no clause; give clause=1 to {len(entry.clauses)}, or say in "
                "beyond= which promise of the paper it checks"
            )
        if claim.clause > len(entry.clauses):
            raise CatalogueError(
                f"{item.evidence}: {claim.says!r} answers clause {claim.clause}, and row {method.id} has "
                f"{len(entry.clauses)}"
            )


@cache
def _collected() -> tuple[dict[str, Located], list[Missing]]:
    return collect(index())


def records() -> dict[str, Located]:
    """Every record of the package that can be read with the installed packages.

    Returns:
        Record by name, sorted by name.
    """
    return dict(_collected()[0])


def unreadable() -> list[Missing]:
    """Records whose file or evidence needs a package that is not installed.

    Returns:
        One entry per record.
    """
    return list(_collected()[1])


def some(names: Iterable[str]) -> tuple[dict[str, Located], list[Missing]]:
    """Records of some names; no other is imported.

    Args:
        names: names of methods, in any case; those without a record are passed over.

    Returns:
        Records by name, and the records that cannot be read because of a missing package.
    """
    wanted = {fold(name) for name in names}
    return collect(item for item in index() if fold(item.name) in wanted)


def closest(name: str, known: Iterable[str]) -> list[str]:
    """The three names closest to a misspelt one.

    Args:
        name: name as typed.
        known: names to choose from.

    Returns:
        At most three names, closest first.
    """
    by_fold = {fold(candidate): candidate for candidate in known}
    return [by_fold[near] for near in difflib.get_close_matches(fold(name), by_fold, n=3, cutoff=0.0)]


def find(name: str) -> Located:
    """Find a record by name, ignoring case, spaces, hyphens and underscores. No other record is imported.

    Args:
        name: name of the method.

    Returns:
        The record.

    Raises:
        CatalogueError: no record of that name. The text lists the three closest names, or says that the row exists but
            has no record yet, or which package the record needs.
    """
    known = index()
    for item in known:
        if fold(item.name) == fold(name):
            located = locate(item)
            if isinstance(located, Missing):
                raise CatalogueError(f"{item.name} needs {located.package}: {install_hint('torch')}")
            return located
    near = f"the closest are {', '.join(closest(name, [item.name for item in known]))}"
    if row := next((entry for entry in entries().values() if fold(entry.name) == fold(name)), None):
        raise CatalogueError(f"{row.name} is row {row.id} of the catalogue but has no record here yet; {near}")
    raise CatalogueError(f"no record is called {name!r}; {near}")
