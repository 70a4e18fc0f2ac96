from pathlib import Path

import pytest

import foveal
from foveal import _install
from foveal._install import install_hint
from foveal.errors import FovealError
from foveal.images import PictureError
from foveal.runtime.card import BundleError
from foveal.runtime.engines import EngineError, EngineMemoryError, EngineUnsupportedError


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (BundleError, ValueError),
        (EngineError, RuntimeError),
        (EngineMemoryError, MemoryError),
        (EngineUnsupportedError, RuntimeError),
        (PictureError, ValueError),
    ],
)
def test_errors_are_foveals_and_a_builtin(error, builtin):
    assert issubclass(error, FovealError)
    assert issubclass(error, builtin)


def test_one_except_catches_them_all(tmp_path):
    for wrong in (lambda: foveal.Upscaler(model="nonsense"), lambda: foveal.Upscaler()(tmp_path / "none.png")):
        with pytest.raises(FovealError):
            wrong()


def test_install_hint_fits_a_checkout_and_an_installation(monkeypatch, tmp_path):
    assert install_hint("torch") == "pip install '.[torch]'"
    monkeypatch.setattr(_install, "_ROOT", tmp_path)
    assert install_hint("torch") == "pip install 'foveal[torch]'"
    # A project that vendors the package is no checkout of foveal.
    Path(tmp_path / "pyproject.toml").write_text("")
    assert install_hint("native") == "pip install 'foveal[native]'"
