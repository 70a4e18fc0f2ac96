import sys

import numpy as np
import pytest

from foveal.runtime import kernels
from foveal.runtime.engines import why_not
from foveal.runtime.upscaler import Upscaler


def test_kernels_of_another_version_are_not_called(monkeypatch):
    foveal_kernels = pytest.importorskip("foveal_kernels")
    monkeypatch.setattr(foveal_kernels, "__version__", "0.1.0")
    assert kernels.why_not().startswith("foveal-kernels 0.1.0 is installed, this foveal calls 0.2; run `pip install")
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
