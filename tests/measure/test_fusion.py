import math

import numpy as np
import pytest

from foveal.measure import fusion

BEST = 0.9994 / (1 + math.exp(-7.5)) * 0.9879 / (1 + math.exp(-4.4))  # of equal pictures


def texture(height=48, width=64, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width)).astype(np.float64)


def ramp(angle, size=9):
    y, x = np.mgrid[:size, :size]
    return 4 * (math.cos(angle) * x + math.sin(angle) * y)


def test_equal_pictures_keep_every_edge():
    x = texture()
    assert fusion.q_abf(x, x, x) == pytest.approx(BEST, abs=1e-12)
    assert pytest.approx(0.9748, abs=1e-4) == BEST


def test_q_abf_by_hand():
    """A is a ramp of strength 1, B of 3 at a right angle; the fused picture is B at a third of its contrast."""
    a, b = ramp(0), 3 * ramp(math.pi / 2)
    sigmoid = [lambda g: 0.9994 / (1 + math.exp(-15 * (g - 0.5))), lambda d: 0.9879 / (1 + math.exp(-22 * (d - 0.8)))]
    of_a = sigmoid[0](1.0) * sigmoid[1](0.0)  # as strong, at a right angle
    of_b = sigmoid[0](1 / 3) * sigmoid[1](1.0)
    assert fusion.q_abf(b / 3, a, b) == pytest.approx((of_a * 1 + of_b * 3) / 4, abs=1e-9)


def test_an_edge_turned_by_half_a_circle_has_the_same_direction():
    x = ramp(math.pi / 2 - 1e-9)
    assert fusion.q_abf(ramp(math.pi / 2 + 1e-9), x, x) == pytest.approx(BEST, abs=1e-6)


def test_a_flat_fused_picture_keeps_nothing():
    x = texture()
    assert fusion.q_abf(np.full_like(x, 9), x, x) < 1e-3


def test_without_an_edge_there_is_no_score():
    flat = np.full((5, 5), 7.0)
    assert math.isnan(fusion.q_abf(texture(5, 5), flat, flat))


def test_ms_ssim_of_equal_and_of_unlike_pictures():
    x, y = texture(), texture(seed=1)
    assert fusion.ms_ssim(x, x) == pytest.approx(1)
    assert fusion.ms_ssim(x, 255 - x) == 0
    assert fusion.ms_ssim(x, y) < 0.2
    assert fusion.ms_ssim(x, 0.5 * x + 64) > fusion.ms_ssim(x, 0.25 * x + 96)


def test_ms_ssim_by_hand():
    """Flat pictures have only luminance, whose exponent is that of the coarsest scale that fits: 0.0448 + 0.2856."""
    a, b = np.full((22, 30), 100.0), np.full((22, 30), 150.0)
    c = (0.01 * 255) ** 2
    wanted = ((2 * 100 * 150 + c) / (100**2 + 150**2 + c)) ** (0.2856 / (0.0448 + 0.2856))
    assert fusion.ms_ssim(a, b) == pytest.approx(wanted, abs=1e-9)


def test_one_scale_is_ssim():
    from foveal.measure.quality import ssim

    a, b = texture(20, 17), texture(20, 17, seed=3) * 0.3 + 40
    b += 0.7 * a
    assert fusion.ms_ssim(a, b) == pytest.approx(ssim(a, b, shave=0), abs=1e-9)


def test_entropy_by_hand():
    assert fusion.entropy(np.full((4, 4), 3)) == 0
    assert fusion.entropy(np.array([[0, 255], [128, 64]])) == pytest.approx(2)
    assert fusion.entropy(np.array([[0, 0, 0, 255]])) == pytest.approx(0.25 * 2 + 0.75 * math.log2(4 / 3))


def test_mutual_information_by_hand():
    x = texture()
    assert fusion.mutual_information(x, x) == pytest.approx(fusion.entropy(x))
    assert fusion.mutual_information(x, np.zeros_like(x)) == pytest.approx(0, abs=1e-9)
    independent = np.array([[0, 0, 9, 9], [0, 9, 0, 9]])
    assert fusion.mutual_information(independent[:1], independent[1:]) == pytest.approx(0, abs=1e-12)
    assert fusion.mutual_information(x, 255 - x) == pytest.approx(fusion.entropy(x))


def test_scores_hold_all():
    a, b = texture(), texture(seed=1)
    found = fusion.scores(a, a, b)
    assert found["ms_ssim"] == pytest.approx((1 + fusion.ms_ssim(a, b)) / 2)
    assert found["mutual_information"] == pytest.approx(fusion.entropy(a) + fusion.mutual_information(a, b))
    assert found["q_abf"] == fusion.q_abf(a, a, b)
    assert found["entropy"] == fusion.entropy(a)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="pictures must be of one size, got 6×5 and 6×5 and 4×5; resize them"):
        fusion.q_abf(np.zeros((5, 6)), np.zeros((5, 6)), np.zeros((5, 4)))
    with pytest.raises(ValueError, match="edges need 3×3 pixels, got 2×5"):
        fusion.q_abf(*[np.zeros((5, 2))] * 3)
    with pytest.raises(ValueError, match="MS-SSIM needs 11×11 pixels, got 10×40"):
        fusion.ms_ssim(*[np.zeros((40, 10))] * 2)
