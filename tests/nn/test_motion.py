import pytest
import torch

from foveal.nn.motion import inside, row_map, warped


def naive(x, flow):
    """Bilinear reading pixel by pixel, borders repeated."""
    batch, channels, height, width = x.shape
    out = torch.zeros_like(x)
    for b in range(batch):
        for v in range(height):
            for u in range(width):
                y = (v + flow[b, 1, v, u]).clamp(0, height - 1)
                z = (u + flow[b, 0, v, u]).clamp(0, width - 1)
                top, left = min(int(y), height - 2), min(int(z), width - 2)
                down, across = y - top, z - left
                for c in range(channels):
                    cell = x[b, c, top : top + 2, left : left + 2]
                    upper = cell[0, 0] * (1 - across) + cell[0, 1] * across
                    lower = cell[1, 0] * (1 - across) + cell[1, 1] * across
                    out[b, c, v, u] = upper * (1 - down) + lower * down
    return out


def test_a_warp_equals_plain_reading_with_gradients():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 2, 5, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    flow = (torch.randn(2, 2, 5, 7, generator=generator, dtype=torch.float64) * 1.5).requires_grad_()
    ours, theirs = warped(x, flow), naive(x, flow)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(*(torch.autograd.grad(o.square().sum(), (x, flow)) for o in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b)


def test_no_flow_changes_nothing_and_whole_pixels_roll():
    x = torch.rand(1, 3, 6, 9)
    flow = torch.zeros(1, 2, 6, 9)
    torch.testing.assert_close(warped(x, flow), x)
    flow[:, 0], flow[:, 1] = 2, -1
    torch.testing.assert_close(warped(x, flow)[..., 1:, :-2], x.roll((1, -2), (2, 3))[..., 1:, :-2])


def test_inside_is_where_a_flow_reads_within_the_picture():
    flow = torch.zeros(1, 2, 3, 4)
    flow[:, 0] = 1.5
    assert inside(flow)[0, 0].tolist() == [[1, 1, 0, 0]] * 3
    flow[:, 0], flow[:, 1] = -1, 2
    assert inside(flow)[0, 0].tolist() == [[0, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_rows_are_read_in_turn():
    assert row_map(5).flatten().tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert row_map(3, reverse=True).flatten().tolist() == [1, 0.5, 0]


def test_a_flow_of_another_size_raises():
    with pytest.raises(
        ValueError, match=r"the flow of pictures \(2, 3, 4, 4\) must be \(2, 2, 4, 4\), got \(1, 2, 4, 4\)"
    ):
        warped(torch.zeros(2, 3, 4, 4), torch.zeros(1, 2, 4, 4))
