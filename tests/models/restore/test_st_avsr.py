import pytest
import torch
import torch.nn.functional as F

from foveal.models.restore.st_avsr import STAVSR, HyperKernels, VGGPrior, phases, upsampled
from foveal.nn.motion import warped
from foveal.nn.propagation import film_flow


def small(**kwargs):
    torch.manual_seed(0)
    network = STAVSR(**{"dim": 4, "depth": 1, "prior_widths": (2, 3), **kwargs})
    for layer in (network.hyper.out, network.tail[-1], network.attention.offset):  # at the start they are 0
        torch.nn.init.normal_(layer.weight, std=0.2)
    return network.eval()


def test_phases_of_twice_the_pixels():
    nearest, offset = phases(3, 6)
    assert nearest.tolist() == [0, 0, 1, 1, 2, 2]
    assert offset.tolist() == [-0.25, 0.25] * 3
    assert phases(5, 5)[1].abs().max() == 0


def test_kernels_start_as_bilinear_interpolation():
    x = torch.rand(2, 3, 5, 7)
    kernels = HyperKernels(3)(5, 7, 13, 9)
    out = upsampled(x, kernels)
    torch.testing.assert_close(out, F.interpolate(x, (13, 9), mode="bilinear", align_corners=False))


def looped(x, kernels):
    """Pixel by pixel and tap by tap."""
    height, width = x.shape[-2:]
    out = torch.zeros(*x.shape[:2], *kernels.shape[-2:], dtype=x.dtype)
    for i in range(out.shape[-2]):
        for j in range(out.shape[-1]):
            top, left = int((i + 0.5) * height / out.shape[-2]), int((j + 0.5) * width / out.shape[-1])
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    seen = x[..., min(max(top + dy, 0), height - 1), min(max(left + dx, 0), width - 1)]
                    out[..., i, j] += seen * kernels[:, 3 * dy + dx + 4, i, j]
    return out


@pytest.mark.parametrize(("old", "new"), [((1, 1), (2, 3)), ((3, 4), (7, 5)), ((5, 3), (5, 3))])
def test_upsampling_equals_loops(old, new):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, *old, generator=generator, dtype=torch.float64, requires_grad=True)
    kernels = torch.rand(3, 9, *new, generator=generator, dtype=torch.float64, requires_grad=True)
    ours, theirs = upsampled(x, kernels), looped(x, kernels)
    torch.testing.assert_close(ours, theirs)
    weight = torch.rand(ours.shape, generator=generator, dtype=torch.float64)
    ours, theirs = (torch.autograd.grad((out * weight).sum(), (x, kernels)) for out in (ours, theirs))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_kernels_are_those_of_the_phase():
    network = small()
    kernels = network.kernels(4, 6, 2.5)
    assert kernels.shape == (4, 9, 10, 15)
    assert torch.equal(kernels[:, :, 0, 0], kernels[:, :, 5, 5])  # two old pixels are five new ones
    assert torch.equal(kernels[:, :, 1, 2], kernels[:, :, 6, 12])
    assert not torch.allclose(kernels[:, :, 0, 0], kernels[:, :, 0, 1])
    assert not torch.allclose(network.kernels(4, 6, 3)[:, :, 1, 1], network.kernels(4, 6, 1)[:, :, 1, 1])


def test_kept_kernels_give_the_same():
    network, film = small(), torch.rand(1, 2, 3, 5, 6)
    with torch.no_grad():
        assert torch.equal(network(film, 1.7), network(film, kernels=network.kernels(5, 6, 1.7)))


@pytest.mark.parametrize(("scale", "size"), [(1, (5, 7)), (1.3, (6, 9)), (3.5, (18, 24))])
def test_sizes_are_rounded(scale, size):
    assert small()(torch.rand(2, 3, 3, 5, 7), scale).shape == (2, 3, 3, *size)
    assert small(scale=scale)(torch.rand(2, 3, 5, 7)).shape == (2, 3, *size)


def test_it_starts_as_bicubic():
    x = torch.rand(1, 2, 3, 6, 5)
    network = STAVSR(2.5, dim=4, depth=1, prior_widths=())
    wanted = F.interpolate(x[0], (15, 12), mode="bicubic", align_corners=False)
    torch.testing.assert_close(network(x)[0], wanted)


def test_attention_equals_a_sum_pixel_by_pixel():
    network = small()
    layer, generator = network.attention, torch.Generator().manual_seed(1)
    state, one, two = torch.rand(3, 1, 4, 3, 5, generator=generator)
    flows = torch.rand(2, 1, 2, 3, 5, generator=generator)
    ours = layer(state, [(one, flows[0]), (two, flows[1])])
    seen = []
    for other, flow in zip((one, two), flows, strict=True):
        seen.append(warped(other, flow + layer.offset(torch.cat([state, warped(other, flow)], 1))))
    query, keys, values = layer.query(state), [layer.key(s) for s in seen], [layer.value(s) for s in seen]
    for i in range(3):
        for j in range(5):
            scores = torch.stack([query[0, :, i, j] @ k[0, :, i, j] / 2 for k in keys]).softmax(0)
            wanted = sum(s * v[0, :, i, j] for s, v in zip(scores, values, strict=True))
            torch.testing.assert_close(ours[0, :, i, j], wanted)


def test_past_and_future_reach_a_frame_and_no_further_future():
    network, film = small(future=1), torch.rand(1, 4, 3, 6, 7, generator=torch.Generator().manual_seed(0))
    network.requires_grad_(requires_grad=False)
    film.requires_grad_()
    network.features(film)[:, 1].sum().backward()
    reached = film.grad.abs().amax((0, 2, 3, 4)) > 0
    assert reached.tolist() == [True, True, True, False]


def test_the_motion_is_between_the_frames_it_is_used_for(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "foveal.models.restore.st_avsr.film_flow",
        lambda film, **words: asked.append(words["ahead"]) or film_flow(film, **words),
    )
    small(future=3)(torch.rand(1, 2, 3, 5, 6))
    assert asked == [-1, 1, 2, 3]


def test_without_a_prior_it_is_the_baseline():
    network = small(prior_widths=())
    assert network.prior is None
    assert network(torch.rand(1, 2, 3, 4, 5)).shape == (1, 2, 3, 16, 20)


def test_the_prior_is_frozen_and_loads_vgg16():
    prior = VGGPrior((2, 3))
    assert not any(p.requires_grad for p in prior.parameters())
    layers = [layer for stage in prior.stages for layer in stage]
    state = {"classifier.0.weight": torch.rand(1)}
    for place, layer in zip((0, 2, 5, 7, 10), [*layers, torch.nn.Conv2d(3, 4, 3)], strict=True):
        state |= {f"features.{place}.{k}": torch.rand_like(v) for k, v in layer.state_dict().items()}
    prior.load_vgg16(state)
    assert torch.equal(layers[2].weight, state["features.5.weight"])
    x = torch.rand(1, 3, 5, 7)
    y = (x - prior.mean) / prior.std
    first = layers[1](layers[0](y).relu()).relu()
    out = prior(x)
    assert out.shape == (1, 5, 5, 7)
    torch.testing.assert_close(out[:, :2], first)
    pooled = F.avg_pool2d(first**2, 2, ceil_mode=True).sqrt()
    second = layers[3](layers[2](pooled).relu()).relu()
    torch.testing.assert_close(out[:, 2:], F.interpolate(second, (5, 7), mode="bilinear"))


@pytest.mark.parametrize("words", [{"scale": 0.5}, {"future": 0}])
def test_what_is_below_one_is_refused(words):
    with pytest.raises(ValueError, match=r"scale and future must be at least 1, got (0.5 and 2|4 and 0)"):
        STAVSR(**words)


def test_kernels_that_shrink_are_refused():
    with pytest.raises(ValueError, match=r"scale must be at least 1, got 0.9; shrink by another tool"):
        small().kernels(4, 5, 0.9)
