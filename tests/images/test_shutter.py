"""Rolling shutter: the movement is found, and the bank's damage undone."""

import numpy as np
import pytest
import torch
from PIL import Image

from foveal.images.shutter import LEAST_PEAK, movement, unrolled
from foveal.train.restore.bank.shutter import RollingShutter


@pytest.fixture(scope="module")
def photo(pytestconfig):
    with Image.open(sorted((pytestconfig.rootpath / "samples" / "original").iterdir())[0]) as opened:
        return np.asarray(opened.convert("RGB"))[160:360, 200:450]


def rolled(pixels, down, across, read=1.0, reverse=False):
    x = torch.tensor(pixels).permute(2, 0, 1)[None].float() / 255
    made = RollingShutter(across, down, read, reverse)(x, torch.Generator())
    return made[0].mul(255).round().byte().permute(1, 2, 0).numpy()


def psnr(a, b):
    inside = np.s_[20:-20, 20:-20]
    return 10 * np.log10(255**2 / np.square(a[inside].astype(float) - b[inside]).mean())


@pytest.mark.parametrize("move", [(0, 9), (4, -7), (-6, 0)])
def test_movement_is_found(photo, move):
    down, across = move
    first = photo[30:160, 30:200]
    second = photo[30 - down : 160 - down, 30 - across : 200 - across]
    found = movement(first, second)
    assert found[:2] == pytest.approx(move, abs=0.1)
    assert found[2] > 2 * LEAST_PEAK
    half = movement(first.astype(np.float32) / 255, second.astype(np.uint16) * 257)
    assert half[:2] == pytest.approx(move, abs=0.1)


def test_pictures_of_different_scenes_do_not_move(photo):
    assert movement(photo[:100, :120], photo[100:, 130:])[2] < LEAST_PEAK
    assert movement(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 3), np.uint8)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("down", "across", "read", "reverse"), [(0, 10, 1, False), (3, -8, 0.6, False), (-2, 6, 1, True)]
)
def test_rows_are_put_back(photo, down, across, read, reverse):
    seen = rolled(photo, down, across, read, reverse)
    made = unrolled(seen, down=down, across=across, read=-read if reverse else read)
    assert psnr(made, photo) > psnr(seen, photo) + 6
    wide = unrolled(seen.astype(np.uint16) * 257, down=down, across=across, read=-read if reverse else read)
    assert abs(wide / 257 - made).max() <= 0.51


def test_a_camera_at_rest_changes_nothing(photo):
    assert np.array_equal(unrolled(photo, down=0, across=0, read=1), photo)
    assert np.array_equal(unrolled(photo, down=5, across=3, read=0), photo)


def test_what_cannot_be_is_refused(photo):
    with pytest.raises(ValueError, match=r"frames must be of one size, got 250×200 and 250×100; leave out"):
        movement(photo, photo[:100])
    with pytest.raises(ValueError, match=r"read must be a share from -1 to 1 of the time between frames, got 1\.5"):
        unrolled(photo, down=1, across=0, read=1.5)
    with pytest.raises(ValueError, match="150 pixels a frame are too many for 200 rows; cut the film"):
        unrolled(photo, down=150, across=0, read=1)
