import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Two small pictures with edges to learn from, and one too small to use."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i, side in enumerate((48, 64, 10)):
        coarse = rng.integers(0, 256, (side // 4 + 1, side // 4 + 1, 3), np.uint8)
        image = np.kron(coarse, np.ones((4, 4, 1), np.uint8))[:side, :side]
        (folder / "deep").mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / ("deep" if i else ".") / f"{i}.png")
    return folder
