"""Exposure by stops."""

import numpy as np
import pytest
import torch

from foveal.images.exposure import KNEE, exposed
from foveal.train.restore.bank.exposure import Exposure, to_linear


def test_below_the_knee_light_is_multiplied():
    levels = np.arange(256, dtype=np.uint8)[None, :, None]
    for stops in (1, -1.5, 0.3):
        made = exposed(levels, stops).ravel()
        x = torch.arange(256).view(1, 1, 1, -1).expand(1, 3, 1, -1) / 255
        wanted = Exposure(stops)(x, torch.Generator())[0, 0, 0].mul(255).round().numpy()
        light = to_linear(x)[0, 0, 0].numpy() * 2 ** max(stops, 0)
        below = light < KNEE
        assert abs(made[below] - wanted[below]).max() <= 1


def test_white_stays_and_order_is_kept():
    levels = np.arange(65536, dtype=np.uint16)[None]
    for stops in (0.1, 1, 5, -0.1, -2, -5):
        made = exposed(levels, stops)[0].astype(int)
        assert made[0] == 0
        assert made[-1] == 65535
        assert (np.diff(made) >= 0).all()
    assert np.array_equal(exposed(levels, 0), levels)


def test_fewer_stops_undo_more():
    x = np.linspace(0, 1, 500, dtype=np.float64)
    np.testing.assert_allclose(exposed(exposed(x, 1.7), -1.7), x, atol=1e-6)
    assert exposed(x.astype(np.float32), 1).dtype == np.float32


def test_too_many_stops():
    with pytest.raises(ValueError, match="stops must be from -5 to 5, got 6; expose in two steps"):
        exposed(np.zeros((1, 1, 3), np.uint8), 6)
    with pytest.raises(ValueError, match="got nan"):
        exposed(np.zeros((1, 1, 3), np.uint8), float("nan"))
