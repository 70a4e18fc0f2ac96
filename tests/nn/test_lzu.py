import pytest
import torch
from torch import nn

from foveal.nn.lzu import LZU, box_saliency
from foveal.runtime.route import recording


def drawn(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


class Pyramid(nn.Module):
    """Two maps of different stride."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 5, 3, 2, 1)

    def forward(self, x):
        x = self.first(x)
        return [x, self.second(x)]


def test_with_a_uniform_saliency_a_body_gives_what_it_gives_alone():
    body, x = Pyramid(), drawn(2, 3, 12, 20)
    for ours, theirs in zip(LZU(body, (12, 20), saliency=torch.full((3, 5), 0.2))(x), body(x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_features_go_back_to_where_they_were_seen():
    """A body that copies its picture gives back a smooth one, whatever the grid."""
    down, across = torch.meshgrid(torch.linspace(0, 1, 40), torch.linspace(0, 1, 60), indexing="ij")
    x = torch.stack((down, across, (down + across) / 2))[None]
    saliency = drawn(6, 7) ** 4 + 0.01
    model = LZU(nn.Identity(), (40, 60), saliency=saliency)
    back = model(x)
    inner = (..., slice(2, -2), slice(2, -2))  # at the borders pixels are repeated
    torch.testing.assert_close(back[inner], x[inner], rtol=0, atol=2e-3)
    zoomed = model.grid(x).zoom(x, (40, 60))
    assert float((zoomed - x)[inner].abs().max()) > 0.02


def test_a_salient_corner_gets_more_pixels():
    x, marked = torch.zeros(1, 1, 32, 32), torch.full((8, 8), 0.1)
    x[..., 4:10, 4:10], marked[1:3, 1:3] = 1, 5
    model = LZU(nn.Identity(), (16, 16), saliency=marked)
    assert float(model.grid(x).zoom(x, (16, 16)).sum()) > 1.2 * float(x.sum()) / 4


def test_the_head_gets_maps_that_are_finer():
    model = LZU(Pyramid(), (12, 20), saliency=drawn(3, 4) + 0.1, finer=2)
    x = drawn(1, 3, 24, 40)
    assert [tuple(f.shape[2:]) for f in model(x)] == [(12, 20), (6, 10)]
    model.head = nn.ModuleList()
    model.head.forward = lambda maps: len(maps)
    assert model(x) == 2


def test_a_map_of_the_call_goes_before_the_fixed_one():
    fixed, x = LZU(nn.Identity(), (8, 8), saliency=drawn(3, 4) + 0.1), drawn(2, 3, 16, 16)
    own = drawn(2, 3, 4, seed=3) + 0.1
    free = LZU(nn.Identity(), (8, 8))
    assert torch.equal(fixed(x, own), free(x, own))
    assert not torch.equal(fixed(x, own), fixed(x))


def test_a_network_that_looks_learns_with_the_others():
    looks = nn.Sequential(nn.AdaptiveAvgPool2d((3, 4)), nn.Conv2d(3, 1, 1), nn.Flatten(1, 2), nn.Softplus())
    model = LZU(Pyramid(), (12, 20), saliency=looks)
    model(drawn(2, 3, 24, 40))[1].square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(p.grad.any() for p in looks.parameters() if p.ndim > 1)


def test_the_route_says_where_it_was_read_most():
    marked, x = torch.full((8, 8), 0.1), drawn(2, 3, 32, 32)
    marked[1:3, 1:3] = 5
    with recording() as routes:
        LZU(nn.Identity(), (16, 16), saliency=marked)(x)
    assert routes[0].share == 0.25
    assert routes[0].work.shape == (2, 32, 32)
    assert float(routes[0].work[1].max()) <= 1
    assert routes[0].work[1, 7, 7] > 1.5 * routes[0].work[1, 28, 28]


def test_boxes_are_salient_where_they_are():
    boxes = torch.tensor([[0.25, 0.5, 0.2, 0.4], [0.75, 0.5, 0.1, 0.1]])
    found = box_saliency(boxes, (5, 9), amplitude=6.0)
    assert found.shape == (1, 5, 9)
    assert found[0, 2, 2] == pytest.approx(1 + 6 / 2, abs=0.01)
    across, down = (0.375 - 0.25) / 0.1, (0.75 - 0.5) / 0.2
    wanted = 1 + 3 * torch.exp(-0.5 * torch.tensor(across**2 + down**2))
    assert found[0, 3, 3] == pytest.approx(float(wanted), abs=1e-3)
    assert torch.equal(box_saliency(torch.zeros(0, 4), (2, 3)), torch.ones(1, 2, 3))
    assert torch.equal(box_saliency(boxes, (2, 3), amplitude=0.0), torch.ones(1, 2, 3))


def test_what_does_not_fit_raises():
    with pytest.raises(ValueError, match="finer must be at least 1, got 0; features may only be enlarged"):
        LZU(nn.Identity(), (8, 8), finer=0)
    with pytest.raises(ValueError, match=r"a fixed saliency must be \(n, m\), got \(1, 3, 4\); it has no batch"):
        LZU(nn.Identity(), (8, 8), saliency=torch.ones(1, 3, 4))
    with pytest.raises(ValueError, match=r"no saliency was given; pass one to this call, or to LZU\(…, saliency=\)"):
        LZU(nn.Identity(), (8, 8))(drawn(1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"boxes must be \(N, 4\): x, y, width, height, got \(3,\)"):
        box_saliency(torch.ones(3), (2, 2))
    with pytest.raises(ValueError, match=r"amplitude must be at least 0 and bandwidth above 0, got -1 and 0\.5"):
        box_saliency(torch.ones(1, 4), (2, 2), amplitude=-1)
