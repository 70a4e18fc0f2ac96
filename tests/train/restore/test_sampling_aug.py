import numpy as np
import pytest

from foveal.train.restore.sampling_aug import informative, patch_scores


def naive(error, patch, stride):
    rows = range(0, error.shape[0] - patch + 1, stride)
    columns = range(0, error.shape[1] - patch + 1, stride)
    return np.array([[error[y : y + patch, x : x + patch].sum() for x in columns] for y in rows])


@pytest.mark.parametrize(
    ("height", "width", "patch", "stride"), [(7, 9, 3, 1), (63, 40, 16, 4), (5, 5, 5, 2), (9, 31, 1, 7)]
)
def test_scores_equal_the_naive_sum(height, width, patch, stride):
    error = np.random.default_rng(0).random((height, width)).astype(np.float32)
    np.testing.assert_allclose(patch_scores(error, patch, stride=stride), naive(error, patch, stride), rtol=1e-6)


def test_scores_of_a_single_wrong_pixel_are_found_where_it_is():
    error = np.zeros((8, 8))
    error[2, 5] = 4.0
    scores = patch_scores(error, 3)
    assert scores.sum() == 4.0 * 9
    assert {tuple(p) for p in informative(scores, 9 / scores.size)} == {(y, x) for y in (0, 1, 2) for x in (3, 4, 5)}


def test_whole_fraction_keeps_every_position():
    assert len(informative(np.random.default_rng(0).random((4, 6)), 1.0)) == 24


def test_small_fraction_keeps_the_best():
    scores = np.arange(12.0).reshape(3, 4)
    assert informative(scores, 0.01).tolist() == [[2, 3]]


def test_errors():
    for wrong in ({"patch": 0}, {"patch": 2, "stride": 0}):
        with pytest.raises(ValueError, match="patch and stride must be at least 1, got"):
            patch_scores(np.zeros((8, 12)), **wrong)
    with pytest.raises(ValueError, match="patch of 9 does not fit a picture of 8×12"):
        patch_scores(np.zeros((8, 12)), 9)
    with pytest.raises(ValueError, match=r"fraction must be in \(0, 1\], got 0"):
        informative(np.zeros((2, 2)), 0)
