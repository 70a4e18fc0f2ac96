"""Toy records and packages of toy records."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest

from foveal.catalogue.collect import Located
from foveal.record import Claim, Method, Paper, smaller

PAPER = Paper("A Toy", "A. Author", 2020, "arXiv:0000.00000")
_number = itertools.count()


def holding(says: str = "One is less than two.", **changes) -> Claim:
    return smaller(says, **{"paper": "2 times", "ours": lambda: 1.0, "theirs": lambda: 2.0, **changes})


def toy(**changes) -> Method:
    plain = {"id": 63, "name": "ESPCN", "kind": "objective", "summary": "A toy.", "paper": PAPER}
    return Method(**{**plain, "claims": (holding(),), **changes})


@pytest.fixture
def make_method():
    return toy


@pytest.fixture
def make_claim():
    return holding


@pytest.fixture
def located():
    """The record as if it stood in this file."""
    return lambda method: Located(method, "tests.toy", Path(__file__))


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes files into a new importable package: folder and dotted name come back."""
    made = []

    def write(**files: str) -> tuple[Path, str]:
        name = f"toy_methods_{next(_number)}"
        folder = tmp_path / name
        folder.mkdir()
        for file, text in {"__init__": "", **files}.items():
            path = folder / (file.replace("__sub__", "/") + ".py")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        made.append(name)
        return folder, name

    monkeypatch.syspath_prepend(tmp_path)
    yield write
    for module in [m for m in sys.modules if m.split(".")[0] in made]:
        del sys.modules[module]
