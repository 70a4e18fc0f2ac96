import math

import pytest
import torch
import torch.nn.functional as F

from foveal.evidence.models.restore.no_mri import PATTERNS, coarse, finer, measured, pattern
from foveal.models.restore.no_mri import (
    NOMRI,
    DiscoConv,
    UShapedOperator,
    consistent,
    disco_basis,
    to_kspace,
    to_picture,
)


def small(**kwargs):
    torch.manual_seed(0)
    network = NOMRI(**{"dim": 2, "levels": 2, "cascades": 2, **kwargs})
    for operator in (network.frequency, *network.pictures):  # at the start they are 0
        torch.nn.init.normal_(operator.out.weight, std=0.2)
    return network


def picture(side=16, batch=2, seed=0):
    return torch.rand(batch, 1, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(1, 1), (4, 6), (5, 7)])
def test_the_transform_is_unitary_and_undone(size):
    x = torch.randn(2, 1, *size, dtype=torch.complex128)
    k = to_kspace(x)
    torch.testing.assert_close(k.abs().square().sum(), x.abs().square().sum())
    torch.testing.assert_close(to_picture(k), x)
    flat = to_kspace(torch.ones(size, dtype=torch.float64))
    assert flat[size[0] // 2, size[1] // 2].abs() == pytest.approx(math.prod(size) ** 0.5)
    assert flat.abs().sum() == pytest.approx(math.prod(size) ** 0.5)


def test_consistency_is_a_projection_with_weight_one():
    k, given = torch.randn(2, 1, 1, 4, 5, dtype=torch.complex64)
    mask = (torch.rand(1, 1, 4, 5) < 0.5).float()
    out = consistent(k, given, mask)
    torch.testing.assert_close(out, torch.where(mask.bool(), given, k))
    torch.testing.assert_close(consistent(out, given, mask), out)
    assert torch.equal(consistent(k, given, mask, 0.0), k)


def looped(radius, rings, angles, fine):
    """The basis by the definition, place by place."""
    half = max(0, math.ceil(radius - 0.5))
    out = torch.zeros((rings - 1) * angles + 1, 2 * half + 1, 2 * half + 1, dtype=torch.float64)
    step, turn = radius / (rings - 1), 2 * math.pi / angles
    for i in range(2 * half + 1):
        for j in range(2 * half + 1):
            for a in range(fine):
                for b in range(fine):
                    y, x = i - half - 0.5 + (a + 0.5) / fine, j - half - 0.5 + (b + 0.5) / fine
                    r, angle = math.hypot(x, y), math.atan2(y, x)
                    out[0, i, j] += max(0, 1 - r / step)
                    for place in range(1, out.shape[0]):
                        ring, direction = 1 + (place - 1) // angles, (place - 1) % angles
                        apart = abs((angle - direction * turn + math.pi) % (2 * math.pi) - math.pi)
                        if r <= radius:
                            out[place, i, j] += max(0, 1 - abs(r / step - ring)) * max(0, 1 - apart / turn)
    return out / out.sum((1, 2), keepdim=True)


@pytest.mark.parametrize(("radius", "rings", "angles"), [(0.4, 2, 2), (1.5, 3, 4), (1.7, 2, 3)])
def test_the_basis_equals_loops(radius, rings, angles):
    torch.testing.assert_close(disco_basis(radius, rings=rings, angles=angles), looped(radius, rings, angles, 8))


@pytest.mark.parametrize(("radius", "side"), [(0.5, 1), (1.5, 3), (3.0, 7), (0.2, 1)])
def test_kernels_cover_their_radius(radius, side):
    assert disco_basis(radius).shape == (9, side, side)


def test_a_flat_picture_gives_the_same_on_every_grid():
    torch.manual_seed(0)
    layer, x = DiscoConv(2, 3, 1.5), torch.ones(1, 2, 24, 24)
    outs = [layer(x, spacing)[0, :, 12, 12] for spacing in (1.0, 0.5, 0.25)]
    torch.testing.assert_close(outs[0], layer.weight.sum((1, 2)))
    torch.testing.assert_close(outs[1], outs[0])
    torch.testing.assert_close(outs[2], outs[0])


def test_a_layer_of_a_kernel_is_a_convolution_with_it():
    torch.manual_seed(0)
    layer, x = DiscoConv(2, 3, 1.5).double(), torch.randn(2, 2, 5, 7, dtype=torch.float64, requires_grad=True)
    kernel = layer.kernel(1.0)
    wanted = torch.zeros(2, 3, 5, 7, dtype=torch.float64)
    padded = F.pad(x, (1, 1, 1, 1))
    for dy in range(3):
        for dx in range(3):
            wanted = wanted + torch.einsum("oi,bihw->bohw", kernel[..., dy, dx], padded[..., dy : dy + 5, dx : dx + 7])
    ours = layer(x, 1.0)
    torch.testing.assert_close(ours, wanted)
    weight = torch.randn_like(ours)
    grads = (torch.autograd.grad((out * weight).sum(), (x, layer.weight), retain_graph=True) for out in (ours, wanted))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_levels_see_twice_as_far_on_twice_as_coarse_a_grid():
    asked = []

    class Layer(torch.nn.Conv2d):
        def __init__(self, seen, made, radius):
            super().__init__(seen, made, 1)
            self.radius = radius

        def forward(self, x, spacing):
            asked.append((self.radius, spacing, x.shape[-1]))
            return super().forward(x)

    out = UShapedOperator(2, dim=2, levels=2, radius=1.5, layer=Layer)(torch.rand(1, 2, 9, 11), 0.5)
    assert out.shape == (1, 2, 9, 11)
    assert not out.any()
    assert asked == [(1.5, 0.5, 11)] * 2 + [(3.0, 1.0, 6)] * 2 + [(1.5, 0.5, 11)] * 3


def test_what_was_measured_is_kept():
    x = measured(picture(), "points", torch.Generator().manual_seed(0))
    network, mask = small(), x[:, 2:]
    captured = []
    to_measure = torch.complex(x[:, :1], x[:, 1:2])
    network.pictures[-1].register_forward_hook(lambda *_: captured.append(1))
    with torch.no_grad():
        out = network(x)
        assert captured == [1]
        assert not torch.allclose(out, to_picture(to_measure).abs(), atol=1e-3)
        # with everything measured, the picture itself comes back whatever the operators say
        k = to_kspace(picture())
        whole = network(torch.cat([k.real, k.imag, torch.ones_like(mask)], 1))
    torch.testing.assert_close(whole, picture(), atol=1e-5, rtol=0)


def test_it_starts_as_zero_filling():
    x = measured(picture(), "columns", torch.Generator().manual_seed(0))
    wanted = to_picture(torch.complex(x[:, :1], x[:, 1:2])).abs()
    torch.testing.assert_close(NOMRI(dim=2, levels=2, cascades=1)(x), wanted)


def test_the_spacing_is_that_of_pictures_and_not_of_kspace():
    asked = {"frequency": [], "pictures": []}
    network = small()
    for place, operators in (("frequency", [network.frequency]), ("pictures", network.pictures)):
        for operator in operators:
            operator.register_forward_pre_hook(lambda _, inputs, place=place: asked[place].append(inputs[1]))
    network(torch.rand(1, 3, 8, 8), spacing=0.5)
    assert asked == {"frequency": [1.0], "pictures": [0.5, 0.5]}


def test_every_parameter_gets_a_gradient():
    network = small()
    network(measured(picture(), "spokes", torch.Generator().manual_seed(0))).square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for n, p in network.named_parameters() if "bias" not in n)


@pytest.mark.parametrize("words", [{"rings": 1}, {"angles": 1}, {"radius": 0.0}])
def test_a_basis_without_extent_is_refused(words):
    with pytest.raises(ValueError, match="at least 2 rings, 2 angles and a radius above 0, got "):
        disco_basis(**{"radius": 1.5, **words})


def test_another_scale_is_refused():
    with pytest.raises(ValueError, match="scale 1, got 2; give a finer grid"):
        NOMRI(2)


@pytest.mark.parametrize("name", PATTERNS)
def test_a_quarter_is_measured_with_the_middle(name):
    masks = [pattern(name, 64, torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    for mask in masks:
        assert mask.mean() == pytest.approx(0.25, abs=0.02)
        assert mask[31:34, 31:34].all()


def test_a_finer_grid_holds_the_same_picture():
    x = picture(8)
    smooth = to_picture(F.pad(to_kspace(x)[..., 1:, 1:], (5, 4, 5, 4))).real * 2  # without the unpaired frequency
    assert (coarse(smooth) - to_picture(F.pad(to_kspace(x)[..., 1:, 1:], (1, 0, 1, 0))).abs()).abs().max() < 1e-5
    k = to_kspace(x)
    given = torch.cat([k.real, k.imag, torch.ones_like(x)], 1)
    fine = finer(given)
    assert fine.shape == (2, 3, 16, 16)
    back = to_picture(torch.complex(fine[:, :1], fine[:, 1:2]))[..., ::2, ::2]
    torch.testing.assert_close(back.abs(), x, atol=1e-5, rtol=0)
    assert fine[:, 2].sum() == given[:, 2].sum()
