"""A place for toy packages."""

from __future__ import annotations

import itertools
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

_number = itertools.count()


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
            path.parent.mkdir(exist_ok=True, parents=True)
            path.write_text(text, encoding="utf-8")
        made.append(name)
        return folder, name

    monkeypatch.syspath_prepend(tmp_path)
    yield write
    for module in [m for m in sys.modules if m.split(".")[0] in made]:
        del sys.modules[module]
