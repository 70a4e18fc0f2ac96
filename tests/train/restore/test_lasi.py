import pytest
import torch

from foveal.train.restore.lasi import lasi, lasi_distance, neighbours, prediction_weights


def by_pixel(x, dim):
    """Weighted least squares of each pixel of a picture, (H, W) to (D, H, W)."""
    height, width = x.shape
    x = 2 * x - 1
    places = [(i, j) for i in range(height) for j in range(width)]

    def near(i, j):
        at = [(i + row, j + column) for row, column in neighbours(dim)]
        return torch.stack([x[a, b] if 0 <= a < height and 0 <= b < width else x.new_zeros(()) for a, b in at])

    out = x.new_zeros(dim, height, width)
    for number, (i, j) in enumerate(places):
        root = [0.8 ** ((abs(i - a) + abs(j - b)) / 2) for a, b in places[:number]]
        seen = [r * near(a, b) for r, (a, b) in zip(root, places, strict=False)]
        wanted = [r * x[a, b] for r, (a, b) in zip(root, places, strict=False)]
        ridge = torch.eye(dim, dtype=x.dtype) * (80 / 127.5) ** 0.5
        matrix, right = torch.stack([*seen, *ridge]), torch.stack([*wanted, *x.new_zeros(dim)])
        out[:, i, j] = torch.linalg.lstsq(matrix, right[:, None]).solution[:, 0]
    return out


@pytest.mark.parametrize(("size", "dim"), [((5, 7), 4), ((6, 3), 7), ((1, 4), 1)])
def test_equals_least_squares_pixel_by_pixel(size, dim):
    x = torch.rand(2, 1, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours, theirs = prediction_weights(x, dim)[:, :, 0], torch.stack([by_pixel(one[0], dim) for one in x], 1)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    ours, theirs = ((w + 1e-6) / (w + 1e-6).square().sum(0).sqrt() for w in (ours, theirs))
    distance = (theirs[:, 0] - theirs[:, 1]).square().sum(0).sqrt().mean()
    torch.testing.assert_close(lasi_distance(x[:1], x[1:], dim)[0], distance)


def test_neighbours_come_before_and_the_nearest_first():
    assert neighbours(6) == [(-1, 0), (0, -1), (-2, 0), (-1, -1), (-1, 1), (0, -2)]
    assert all(place < (0, 0) for place in neighbours(30))
    assert len(set(neighbours(30))) == 30


def test_gradients_are_right():
    x, y = torch.rand(2, 1, 2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(lambda x: lasi_distance(x, y, 5), x.requires_grad_())


def test_it_is_a_distance():
    x, y, z = torch.rand(3, 2, 3, 8, 9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(lasi_distance(x, x), torch.zeros(2))
    assert torch.equal(lasi_distance(x, y), lasi_distance(y, x))
    assert (lasi_distance(x, z) <= lasi_distance(x, y) + lasi_distance(y, z)).all()
    assert torch.equal(lasi(x, y), lasi_distance(x, y).mean())


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="dim must be at least 1, got 0; 8 is the default"):
        neighbours(0)
    with pytest.raises(ValueError, match=r"must have the same shape, got \(1, 1, 4, 4\) and \(1, 1, 4, 5\); resize"):
        lasi_distance(torch.rand(1, 1, 4, 4), torch.rand(1, 1, 4, 5))
