"""Toy records, claims and packages of toy records."""

from __future__ import annotations

from pathlib import Path

from foveal.cases import Procedure
from foveal.catalogue import collect
from foveal.catalogue.collect import Located
from foveal.index import Indexed
from foveal.record import Claim, Method, Paper, smaller

PAPER = Paper("A Toy", "A. Author", 2020, "arXiv:0000.00000")
RUNS = {"case": Procedure(run=lambda seed: float(seed))}


def holding(says: str = "One is less than two.", **changes) -> Claim:
    plain = {"paper": "2 times", "ours": lambda: 1.0, "theirs": lambda: 2.0, "clause": 1}
    return smaller(says, **{**plain, **changes})


def toy(**changes) -> Method:
    plain = {"id": 63, "name": "ESPCN", "kind": "procedure", "summary": "A toy.", "paper": PAPER, "cases": RUNS}
    return Method(**{**plain, **changes})


def located(method: Method | None = None, *claims: Claim) -> Located:
    """A record as if it and its evidence stood in this file."""
    return Located(method or toy(), "foveal.record", Path(__file__), claims or (holding(),), "foveal.errors")


def stand_in(monkeypatch, *records: Located, missing=()) -> None:
    """Make the catalogue find these records and no others."""
    by_name = {item.method.name: item for item in records}
    indexed = [
        Indexed(item.module, item.path, item.method.id, name, item.method.kind, ()) for name, item in by_name.items()
    ]
    held = {item.indexed.name: item for item in missing}
    monkeypatch.setattr(collect, "index", lambda: (*indexed, *(item.indexed for item in missing)))
    monkeypatch.setattr(collect, "locate", lambda item: by_name.get(item.name) or held[item.name])
    monkeypatch.setattr(collect, "_collected", lambda: (by_name, list(missing)))
