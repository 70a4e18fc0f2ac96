import numpy as np
import pytest
import torch
import torch.nn.functional as F

from foveal.images.resize import imresize
from foveal.models.restore.luma_sr import LumaSR
from foveal.nn.back_projection import REACH, back_projection, bicubic_kernel, reducing_kernel


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_kernel_is_bicubic_interpolation(scale):
    picture = np.random.default_rng(0).random((9, 11)).astype(np.float32)
    expected = imresize(picture, scale)
    x = F.pad(torch.from_numpy(picture)[None, None], (2, 2, 2, 2), mode="replicate")
    got = F.pixel_shuffle(F.conv2d(x, bicubic_kernel(scale)[:, None]), scale)[0, 0]
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_kernel_is_antialiased_reduction(scale):
    picture = np.random.default_rng(0).random((9 * scale, 11 * scale)).astype(np.float32)
    expected = imresize(picture, 1 / scale)[REACH:-REACH, REACH:-REACH]
    phases = F.pixel_unshuffle(torch.from_numpy(picture)[None, None], scale)
    got = F.conv2d(phases, reducing_kernel(scale)[None])[0, 0]
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_step_is_that_between_two_resizes(scale):
    rng = np.random.default_rng(1)
    low, made = rng.random((24, 22)), rng.random((24 * scale, 22 * scale))
    expected = imresize(low - imresize(made, 1 / scale), scale)
    phases = F.pixel_unshuffle(torch.from_numpy(made)[None, None].float(), scale)
    added = F.pixel_shuffle(back_projection(phases, torch.from_numpy(low)[None, None].float()), scale)[0, 0]
    inside = slice(4 * scale, -4 * scale)
    np.testing.assert_allclose(added[inside, inside].numpy(), expected[inside, inside], atol=1e-5)


def test_what_lacks_nothing_gets_nothing():
    for value in (0.0, 0.7):  # up to the border
        added = back_projection(torch.full((2, 9, 3, 4), value), torch.full((2, 1, 3, 4), value))
        assert added.shape == (2, 9, 3, 4)
        assert added.abs().max() < 1e-6


@pytest.mark.parametrize("arguments", [{}, {"equivariant": True}, {"back_projection": True}])
def test_networks_are_built_and_run_on_meta(arguments):
    with torch.device("meta"):
        model = LumaSR(4, channels=8, depth=1, expand=0, **arguments)
        out = model(torch.rand(1, 3, 8, 9))
    assert {t.device.type for t in (out, *model.parameters(), *model.buffers())} == {"meta"}
    assert out.shape == (1, 3, 32, 36)
    same = LumaSR(4, channels=8, depth=1, expand=0, **arguments)
    assert [p.shape for p in model.parameters()] == [p.shape for p in same.parameters()]
