import pytest
import torch

from foveal.nn import isp

RGB = "RGB"


def picture(*shape, seed=0, requires_grad=False):
    generator = torch.Generator().manual_seed(seed)
    x = 0.02 + 0.96 * torch.rand(*shape, generator=generator, dtype=torch.float64)
    return x.requires_grad_(requires_grad)


@pytest.mark.parametrize(
    ("there", "back"),
    [
        (isp.gamma, isp.degamma),
        (isp.degamma, isp.gamma),
        (isp.srgb_encode, isp.srgb_decode),
        (isp.tone_map, isp.inverse_tone_map),
        (isp.inverse_tone_map, isp.tone_map),
        (
            lambda x: isp.gain(x, torch.tensor([[2.0, 1.0, 1.5], [1.2, 1.0, 3.0]])),
            lambda x: isp.inverse_gain(x, torch.tensor([[2.0, 1.0, 1.5], [1.2, 1.0, 3.0]])),
        ),
        (lambda x: isp.gamma(x, torch.tensor([2.0, 3.0])), lambda x: isp.degamma(x, torch.tensor([2.0, 3.0]))),
    ],
)
def test_a_stage_and_its_inverse_cancel_and_have_gradients(there, back):
    x = picture(2, 3, 5, 7, requires_grad=True)
    torch.testing.assert_close(back(there(x)), x, rtol=0, atol=1e-6)
    assert torch.autograd.gradcheck(there, x)
    assert torch.autograd.gradcheck(back, x)


def test_curves_at_and_beyond_the_ends_are_exact_with_finite_gradients():
    x = torch.tensor([-0.5, 0.0, 0.5, 1.0, 1.5], requires_grad=True).view(1, 1, 1, 5)
    wanted = {
        isp.tone_map: [0, 0, 0.5, 1, 1],
        isp.inverse_tone_map: [0, 0, 0.5, 1, 1],
        isp.gamma: [0, 0, 0.5 ** (1 / 2.2), 1, 1.5 ** (1 / 2.2)],
        isp.degamma: [0, 0, 0.5**2.2, 1, 1.5**2.2],
    }
    for curve, values in wanted.items():
        out = curve(x)
        torch.testing.assert_close(out.flatten(), torch.tensor(values))
        (slope,) = torch.autograd.grad(out.sum(), x)
        assert slope.isfinite().all()
        assert slope[..., 0].item() == 0
        assert slope[..., 2].item() > 0


def test_srgb_by_hand():
    x = torch.tensor([0.0, 0.002, 0.18, 1.0])
    torch.testing.assert_close(isp.srgb_encode(x), torch.tensor([0.0, 0.02584, 0.461356, 1.0]))


def test_a_colour_matrix_mixes_each_pixel_and_its_inverse_undoes_it():
    x, matrices = picture(2, 3, 5, 7), torch.eye(3, dtype=torch.float64) + 0.2 * picture(2, 3, 3, seed=1)
    out = isp.colour_matrix(x, matrices)
    torch.testing.assert_close(out[1, :, 2, 3], matrices[1] @ x[1, :, 2, 3])
    torch.testing.assert_close(isp.colour_matrix(out, torch.linalg.inv(matrices)), x)
    torch.testing.assert_close(isp.colour_matrix(x, matrices[0])[0], out[0])


def test_white_highlights_stay_white():
    x = torch.ones(1, 3, 1, 2)
    x[..., 1] = 0.5
    gains = torch.tensor([2.0, 1.0, 0.5])
    undone = isp.inverse_gain(x, gains, highlights=0.9)
    torch.testing.assert_close(undone[0, :, 0, 0], torch.tensor([1.0, 1.0, 2.0]))
    torch.testing.assert_close(undone[0, :, 0, 1], torch.tensor([0.25, 0.5, 1.0]))


def naive(raw, pattern, method):
    """Pixel by pixel, from the paper: bilinear, plus a share of the Laplacian of the measured colour."""
    (_, _, height, width), own = raw.shape, {}
    reflect = lambda i, n: (n - 1) - abs((n - 1) - abs(i))  # noqa: E731
    at = lambda i, j: raw[0, 0, reflect(i, height), reflect(j, width)]  # noqa: E731
    colour = lambda i, j: RGB.index(pattern[2 * (i % 2) + j % 2])  # noqa: E731
    out = raw.new_zeros(3, height, width)
    for i in range(height):
        for j in range(width):
            own = colour(i, j)
            for c in range(3):
                around = [(u, v) for u in (-1, 0, 1) for v in (-1, 0, 1) if colour(i + u, j + v) == c]
                if c == own:
                    out[c, i, j] = at(i, j)
                    continue
                value = sum(at(i + u, j + v) for u, v in around) / len(around)
                if method == "malvar":
                    two = [(-2, 0), (2, 0), (0, -2), (0, 2)]
                    if own != 1:  # red or blue: plain Laplacian, α = ½ for green, γ = ¾ for the other
                        share = 0.5 if c == 1 else 0.75
                        value = value + share * (at(i, j) - sum(at(i + u, j + v) for u, v in two) / 4)
                    else:  # green: β = ⅝ over nine points, the far ones across having the opposite sign
                        along = [(0, -2), (0, 2)] if colour(i, j + 1) == c else [(-2, 0), (2, 0)]
                        across = [place for place in two if place not in along]
                        diagonal = [(-1, -1), (-1, 1), (1, -1), (1, 1)]
                        far = sum(at(i + u, j + v) for u, v in (*along, *diagonal))
                        far = far - sum(at(i + u, j + v) for u, v in across) / 2
                        value = value + 0.625 * (at(i, j) - far / 5)
                out[c, i, j] = value
    return out[None]


@pytest.mark.parametrize("method", ["malvar", "bilinear"])
@pytest.mark.parametrize(("pattern", "size"), zip(isp.PATTERNS, [(3, 5), (6, 3), (4, 4), (5, 7)], strict=True))
def test_demosaicing_equals_pixel_by_pixel(pattern, size, method):
    raw = picture(1, 1, *size, requires_grad=True)
    ours, theirs = isp.demosaic(raw, pattern, method=method), naive(raw, pattern, method)
    torch.testing.assert_close(ours, theirs)
    weights = picture(1, 3, *size, seed=1)
    slopes = [torch.autograd.grad((out * weights).sum(), raw)[0] for out in (ours, theirs)]
    torch.testing.assert_close(*slopes)
    assert torch.equal(isp.mosaic(ours, pattern), raw)


@pytest.mark.parametrize("pattern", isp.PATTERNS)
def test_mosaic_and_planes_hold_the_colours_that_they_say(pattern):
    x = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1) * torch.ones(2, 3, 4, 6)
    raw = isp.mosaic(x, pattern)
    assert raw[0, 0, :2, :2].flatten().tolist() == [1.0 + RGB.index(letter) for letter in pattern]
    planes = isp.pack(raw, pattern)
    assert planes.shape == (2, 4, 2, 3)
    assert planes[0, :, 0, 0].tolist() == [1.0, 2.0, 2.0, 3.0]
    raw = picture(2, 1, 4, 6)
    assert torch.equal(isp.unpack(isp.pack(raw, pattern), pattern), raw)
    red_row, blue_row = next((i, 1 - i) for i in range(2) if "R" in pattern[2 * i : 2 * i + 2])
    green = [raw[:, 0, row::2, pattern[2 * row : 2 * row + 2].index("G") :: 2] for row in (red_row, blue_row)]
    assert torch.equal(isp.pack(raw, pattern)[:, 1:3], torch.stack(green, 1))


def test_noise_has_the_variance_it_says_and_follows_its_generator():
    x = torch.tensor([0.0, 0.5]).view(1, 1, 2, 1).expand(2, 1, 2, 20_000)
    shot = torch.tensor([0.01, 0.04])
    noisy = [
        isp.shot_and_read_noise(x, shot, 0.001, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    ]
    assert torch.equal(noisy[0], noisy[1])
    assert not torch.equal(noisy[0], noisy[2])
    variance = (noisy[0] - x).square().mean(-1)[:, 0]
    torch.testing.assert_close(variance, torch.tensor([[0.001, 0.006], [0.001, 0.021]]), rtol=0.05, atol=0)


def test_levels_of_noise_lie_where_the_paper_puts_them():
    shot, read = isp.noise_levels(4000, generator=torch.Generator().manual_seed(0))
    assert 1e-4 <= shot.min() < 1.1e-4
    assert 0.0115 < shot.max() <= 0.012
    rest = read.log() - 2.18 * shot.log() - 1.2
    assert abs(rest.mean()) < 0.02
    assert abs(rest.std() - 0.26) < 0.02


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: isp.mosaic(torch.zeros(1, 3, 2, 2), "RGB"),
            "pattern must be one of RGGB, BGGR, GRBG, GBRG, got 'RGB'",
        ),
        (lambda: isp.pack(torch.zeros(1, 1, 3, 4)), r"RAW to pack must be .* even, got \(1, 1, 3, 4\); crop it"),
        (lambda: isp.unpack(torch.zeros(1, 3, 2, 2)), r"planes to unpack must be \(B, 4, H, W\), got \(1, 3, 2, 2\)"),
        (lambda: isp.demosaic(torch.zeros(1, 1, 2, 9)), r"at least 3×3, got \(1, 1, 2, 9\)"),
        (lambda: isp.demosaic(torch.zeros(1, 1, 4, 4), method="fast"), "method must be malvar or bilinear, got 'fast'"),
    ],
)
def test_errors(call, text):
    with pytest.raises(ValueError, match=text):
        call()
