import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from foveal.runtime import kernels
from foveal.runtime.engines import why_not
from foveal.runtime.upscaler import Upscaler

ROOT = Path(__file__).parents[2]


def test_the_kernels_beside_foveal_are_those_that_it_calls():
    """Or every test of theirs would be skipped in silence."""
    version = tomllib.loads((ROOT / "kernels/pyproject.toml").read_text())["project"]["version"]
    assert version.rpartition(".")[0] == kernels.WANTED
    assert f'__version__ = "{version}"' in (ROOT / "kernels/foveal_kernels/__init__.py").read_text()


def test_kernels_of_another_version_are_not_called(monkeypatch):
    foveal_kernels = pytest.importorskip("foveal_kernels")
    monkeypatch.setattr(foveal_kernels, "__version__", "0.1.0")
    wanted = f"foveal-kernels 0.1.0 is installed, this foveal calls {kernels.WANTED}; run `pip install"
    assert kernels.why_not().startswith(wanted)
    assert why_not("native") == kernels.why_not()
    upscaler = Upscaler(quality="fast")
    assert upscaler.plan(np.zeros((9, 9, 3), np.uint8)).engine != "native"


def test_any_last_number_will_do(monkeypatch):
    foveal_kernels = pytest.importorskip("foveal_kernels")
    before = kernels.why_not()
    monkeypatch.setattr(foveal_kernels, "__version__", f"{kernels.WANTED}.99")
    assert kernels.why_not() == before


def test_without_them_it_says_how_to_get_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "foveal_kernels", None)
    assert kernels.why_not() == "foveal-kernels is not installed; run `pip install ./kernels` in foveal's folder"
