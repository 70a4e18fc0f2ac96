import math

import pytest
import torch
import torch.nn.functional as F

from foveal.nn.rescaling import cells, places, resampled, resized, rounded


def test_places_by_hand():
    assert places(6, 2).tolist() == [1.5, 4.5]
    assert places(2, 4).tolist() == [0.25, 0.75, 1.25, 1.75]
    assert places(6, 2, 3).tolist() == [0.5, 1.5, 2.5, 3.5, 4.5, 5.5]  # a cell of three pixels holds its three points
    assert places(2, 2, 3).tolist() == [-0.5, 0.5, 1.5, 0.5, 1.5, 2.5]  # points stay a pixel apart
    assert places(12, 2, 3).tolist() == [1, 3, 5, 7, 9, 11]


def looped(x, size, points):
    """One point after the other."""
    height, width = x.shape[-2:]

    def along(at, whole):
        below = math.floor(at - 0.5)
        share = at - 0.5 - below
        return [(min(max(below, 0), whole - 1), 1 - share), (min(max(below + 1, 0), whole - 1), share)]

    rows, columns = places(height, size[0], points).tolist(), places(width, size[1], points).tolist()
    out = []
    for channel in x.unbind(1):
        for u in range(points):
            for v in range(points):
                for i in range(size[0]):
                    for j in range(size[1]):
                        down = along(min(max(rows[i * points + u], 0.5), height - 0.5), height)
                        across = along(min(max(columns[j * points + v], 0.5), width - 0.5), width)
                        out.append(sum(a * b * channel[:, r, c] for r, a in down for c, b in across))
    return torch.stack(out, 1).view(len(x), -1, *size)


@pytest.mark.parametrize(("old", "new", "points"), [((5, 3), (2, 3), 3), ((3, 4), (7, 5), 2), ((1, 6), (2, 1), 1)])
def test_resampling_equals_loops(old, new, points):
    x = torch.rand(2, 2, *old, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    ours, theirs = resampled(x, new, points=points), looped(x, new, points)
    torch.testing.assert_close(ours, theirs)
    weight = torch.rand(ours.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(*(torch.autograd.grad((out * weight).sum(), x)[0] for out in (ours, theirs)))


def test_at_one_point_and_the_same_size_nothing_changes():
    x = torch.rand(1, 2, 4, 5)
    torch.testing.assert_close(resampled(x, (4, 5), points=1), x)
    torch.testing.assert_close(
        resampled(x, (4, 5))[:, 4::9], x
    )  # of nine points of a channel the fifth is the pixel's own
    torch.testing.assert_close(resized(x, (4, 5)), x)


def test_one_point_is_torch_bilinear():
    x = torch.rand(1, 2, 4, 5)
    torch.testing.assert_close(resampled(x, (9, 7), points=1), F.interpolate(x, (9, 7), mode="bilinear"))


def test_cells_by_hand():
    found = cells((6, 2), (2, 4))
    assert found.shape == (4, 2, 4)
    assert found[0].tolist() == [[0.0] * 4] * 2  # centres of three rows are that of the middle one
    assert found[1, 0].tolist() == [-0.25, 0.25, -0.25, 0.25]
    assert found[2].unique().tolist() == [pytest.approx(math.log2(3))]
    assert found[3].unique().tolist() == [-1.0]


def test_a_centre_on_a_border_falls_to_the_later_pixel():
    assert (cells((30, 30), (3, 15))[0] == -0.5).all()
    assert (cells((30, 30), (3, 15))[1] == -0.5).all()


def test_rounding_and_its_gradient():
    x = torch.tensor([-0.2, 0.1, 0.5, 1.3], requires_grad=True)
    out = rounded(x)
    torch.testing.assert_close(out * 255, torch.tensor([0.0, 26.0, 128.0, 255.0]))
    out.sum().backward()
    assert x.grad.tolist() == [1, 1, 1, 1]
