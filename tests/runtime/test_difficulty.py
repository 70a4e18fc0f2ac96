import numpy as np
import pytest

from foveal.runtime import difficulty
from foveal.runtime.difficulty import EXPONENT, LEAST, LUMA, expected_gain


def plain(image, cell):
    """The formula, pixel by pixel."""
    values = np.pad((image.astype(np.float64) @ LUMA), 1, mode="edge")
    height, width = image.shape[:2]
    found = np.zeros((-(-height // cell[0]), -(-width // cell[1])))
    for row, column in np.ndindex(found.shape):
        details = []
        for y in range(row * cell[0], min(height, (row + 1) * cell[0])):
            for x in range(column * cell[1], min(width, (column + 1) * cell[1])):
                v = values[y : y + 3, x : x + 3]
                across, down = v[1, 0] + v[1, 2] - 2 * v[1, 1], v[0, 1] + v[2, 1] - 2 * v[1, 1]
                both = (v[0, 0] + v[2, 2] - v[0, 2] - v[2, 0]) / 4
                details.append(across**2 + down**2 + 2 * both**2)
        found[row, column] = len(details) * (np.mean(details) + LEAST) ** EXPONENT
    return found


@pytest.mark.parametrize("cell", [(4, 4), (5, 3), (40, 50)])
def test_it_is_the_formula(cell, natural, monkeypatch):
    image = natural(23, 31)
    np.testing.assert_allclose(expected_gain(image, cell), plain(image, cell), rtol=1e-4)
    monkeypatch.setattr(difficulty, "_ROWS", 2 * cell[0])  # a large picture is looked at in strips
    np.testing.assert_allclose(expected_gain(image, cell), plain(image, cell), rtol=1e-4)


def test_kinds_of_pixels_agree(natural):
    image = natural(20, 30)
    want = expected_gain(image, (8, 8))
    np.testing.assert_allclose(expected_gain(image.astype(np.uint16) * 257, (8, 8)), want, rtol=1e-4)
    np.testing.assert_allclose(expected_gain(image.astype(np.float32) / 255, (8, 8)), want, rtol=1e-3)
    grey = image[..., :1]
    np.testing.assert_allclose(expected_gain(grey, (8, 8)), expected_gain(grey.repeat(3, axis=2), (8, 8)), rtol=1e-3)


def test_what_hides_behind_transparent_pixels_does_not_count(natural):
    image = np.dstack([natural(16, 32), np.full((16, 32), 255, np.uint8)])
    np.testing.assert_array_equal(expected_gain(image, (16, 16), alpha=True), expected_gain(image, (16, 16)))
    image[..., 16:, 3] = 0
    seen = expected_gain(image, (16, 8), alpha=True)
    assert seen[0, 3] == pytest.approx(16 * 8 * LEAST**EXPONENT)
    assert seen[0, 0] > 10 * seen[0, 3]


def test_detail_is_expected_to_gain_more_than_flat_and_sloping_places():
    image = np.full((16, 48, 3), 90, np.uint8)
    image[:, 16:32] = np.arange(0, 160, 10, dtype=np.uint8)[:, None]
    image[:, 32:] = np.random.default_rng(0).integers(0, 256, (16, 16, 3))
    flat, slope, detail = expected_gain(image, (16, 16))[0]
    assert flat < slope < detail / 10
