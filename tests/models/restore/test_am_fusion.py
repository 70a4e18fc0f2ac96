import numpy as np
import pytest
import torch
import torch.nn.functional as F

from foveal.measure import fusion
from foveal.models.restore.am_fusion import AMFusionNet, fusion_loss, gradients, ms_ssim


def moved(network):
    """Every parameter away from where it starts."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network


def reference(network, x):
    """The equations, layer by layer."""
    state = network.state_dict()

    def conv(name, x):
        weight = state[name + ".weight"]
        return F.conv2d(x, weight, state[name + ".bias"], padding=weight.shape[-1] // 2)

    def lrelu(x):
        return torch.where(x > 0, x, 0.1 * x)

    features = []
    for i, name in enumerate(("visible", "infrared")):
        f = x[:, i : i + 1]
        for layer in range(len(network.visible)):
            f = lrelu(torch.cat([conv(f"{name}.{layer}.parts.{k}", f) for k in range(3)], 1))
        features.append(f)
    f = torch.cat(features, 1)
    if any(name.startswith("attention") for name in state):
        seen = torch.stack([f.sum(1) / f.shape[1], f.max(1).values], 1)
        spatial = 1 / (1 + torch.exp(-conv("attention.spatial", seen)))
        pooled = f.flatten(2).sum(2)[..., None, None] / (f.shape[2] * f.shape[3])
        channel = 1 / (1 + torch.exp(-conv("attention.up", lrelu(conv("attention.down", pooled)))))
        f = f * spatial + f * channel
    f = conv("decode.4", lrelu(conv("decode.2", lrelu(conv("decode.0", f)))))
    return (x[:, :1] + x[:, 1:]) / 2 + f


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("size", [(1, 1), (7, 13)])
def test_equals_the_equations(attention, size):
    network = moved(AMFusionNet(dim=6, depth=2, attention=attention).double())
    x, y = (torch.rand(2, 2, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) for _ in range(2))
    x.requires_grad_()
    y.requires_grad_()
    ours, theirs = network(x), reference(network, y)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    weights = torch.rand_like(ours)
    torch.testing.assert_close(
        *(torch.autograd.grad((out * weights).sum(), at)[0] for out, at in ((ours, x), (theirs, y)))
    )


def test_with_a_last_layer_of_zeros_it_averages():
    network = AMFusionNet(dim=6)
    torch.nn.init.zeros_(network.decode[-1].weight)
    x = torch.rand(1, 2, 9, 8)
    torch.testing.assert_close(network(x), x.mean(1, keepdim=True))


def test_sizes_are_those_of_the_layers():
    c = 24
    encoder = sum(8 * (k * k + 1) for k in (3, 5, 7))
    attention = 2 * 49 + 1 + 48 * 12 + 12 + 12 * 48 + 48
    decoder = 9 * (2 * c * c + c * c // 2 + c // 2) + c + c // 2 + 1
    assert sum(p.numel() for p in AMFusionNet().parameters()) == 2 * encoder + attention + decoder
    assert AMFusionNet(attention=False).state_dict().keys() < AMFusionNet().state_dict().keys()


@pytest.mark.parametrize("size", [(11, 14), (22, 30), (47, 45), (91, 100)])
def test_ms_ssim_is_that_of_the_measure(size):
    torch.manual_seed(0)
    x = F.interpolate(torch.rand(2, 1, 9, 9, dtype=torch.float64), size, mode="bilinear")
    y = (0.7 * x + 0.3 * torch.rand_like(x)).clamp(0, 1)
    wanted = [fusion.ms_ssim(255 * a[0].numpy(), 255 * b[0].numpy()) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(ms_ssim(x, y), wanted, atol=1e-9)


def test_gradients_by_hand():
    x = torch.tensor([[1.0, 2.0], [4.0, 9.0]])[None, None]
    torch.testing.assert_close(gradients(x).flatten(), torch.tensor([1.0, 3.0]))


def test_the_loss_by_hand():
    """Equal pictures lose nothing; each term counts what it says."""
    torch.manual_seed(0)
    same = torch.rand(2, 1, 16, 18).expand(-1, 2, -1, -1)
    out = same[:, :1]
    assert fusion_loss(out, same) == pytest.approx(0, abs=1e-6)
    pair = torch.cat([out, torch.full_like(out, 0.2)], 1)  # only the visible picture has edges
    similar = float((1 + ms_ssim(out, pair[:, 1:]).mean()) / 2)
    values = float((torch.maximum(out, pair[:, 1:]) - out).mean())
    assert fusion_loss(out, pair, intensity=2.0, gradient=3.0) == pytest.approx(1 - similar + 2 * values, abs=1e-5)
    flat = out * 0 + 0.2
    edges = float(gradients(out).abs().mean())
    base = 1 - (float(ms_ssim(flat, out).mean()) + 1) / 2
    assert fusion_loss(flat, pair, intensity=0.0, gradient=3.0) == pytest.approx(base + 3 * edges, abs=1e-5)


def test_the_loss_is_differentiable_from_the_start():
    network = AMFusionNet(dim=6)
    x = torch.rand(1, 1, 24, 24)
    x = torch.cat([x, 1 - x], 1)  # the average is flat, similarity negative
    fusion_loss(network(x), x).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in network.parameters())


def test_a_width_that_three_sizes_cannot_share_is_refused():
    with pytest.raises(ValueError, match="dim must be a multiple of 3, at least 6, got 16; 24 is the default"):
        AMFusionNet(dim=16)
