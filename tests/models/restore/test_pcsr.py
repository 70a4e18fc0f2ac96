import math

import pytest
import torch
import torch.nn.functional as F

from foveal.measure.cost import count_macs
from foveal.models.restore import pcsr
from foveal.models.restore.pcsr import PCSR, loss, places, two_means
from foveal.runtime.route import recording

SMALL = {"dim": 5, "depth": 1, "heavy": (8, 7), "light": (4,), "classifier": ()}


def drawn(scale=2, **words):
    torch.manual_seed(0)
    network = PCSR(scale, **(SMALL | words)).double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network


def perceptron(part, u):
    u = part.first(u)
    for layer in part.rest:
        u = layer(u.clamp_min(0))
    return u


def reference(network, x):
    """Every pixel by itself: the nearest feature, the place in it, the pixel's size."""
    s, (height, width) = network.scale, x.shape[2:]
    features = network.backbone(x)
    out = F.interpolate(x, scale_factor=s, mode="bilinear", align_corners=False)
    for b in range(len(x)):
        for i in range(s * height):
            for j in range(s * width):
                place = [2 * ((n % s + 0.5) / s) - 1 for n in (i, j)]
                u = torch.cat([features[b, :, i // s, j // s], x.new_tensor([*place, 2 / s, 2 / s])])
                heavy = True
                if network.threshold is not None:
                    heavy = perceptron(network.classifier, u).softmax(0)[1] >= network.threshold
                part = network.heavy_upsampler if heavy else network.light_upsampler
                out[b, :, i, j] += perceptron(part, u)
    return out


@pytest.mark.parametrize(("scale", "size"), [(2, (3, 5)), (3, (1, 4)), (1, (2, 3))])
@pytest.mark.parametrize("share", [None, 0.0, 0.4, 1.0])
def test_every_pixel_by_itself(scale, size, share, monkeypatch):
    monkeypatch.setattr(pcsr, "CHUNK", 7)
    network, x = drawn(scale), torch.rand(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        if share is not None:
            network.threshold = float(network.mixed(x)[1].quantile(1 - share)) + (1.0 if share == 0 else -1e-6)
        torch.testing.assert_close(network(x), reference(network, x), rtol=0, atol=1e-7)  # thirds are stored in float32


def test_with_everything_heavy_nothing_changes():
    network, x = drawn(), torch.rand(1, 3, 6, 5, dtype=torch.float64)
    with torch.no_grad():
        whole = network(x)
        assert torch.equal(whole, network.heavy(x))
        network.threshold = 0.0
        torch.testing.assert_close(network(x), whole, rtol=0, atol=1e-14)
        network.fit_budget_(1)
        assert network.threshold is None


def test_training_mixes_by_probability():
    network, x, y = drawn(), torch.rand(2, 3, 4, 5, dtype=torch.float64), torch.rand(2, 3, 8, 10, dtype=torch.float64)
    with torch.no_grad():
        mixed, score = network.mixed(x)
        assert torch.equal(network.train()(x), mixed)
        network.eval()
        heavy = network(x)
        network.threshold = 2.0
        light = network(x)
        p = F.pixel_shuffle(score.view(2, 4, 5, 4).permute(0, 3, 1, 2), 2)
        torch.testing.assert_close(mixed, p * heavy + (1 - p) * light)
        wanted = 1000 * (mixed - y).abs().mean() + 3 * abs(2 * float(score.mean()) - 1)
        torch.testing.assert_close(loss(network, (x, y)), wanted)


@pytest.mark.parametrize("budget", [0.6, 0.8])
def test_a_budget_is_met_and_counted(budget):
    network, x = drawn(heavy=(16, 16, 16)).float(), torch.rand(2, 3, 13, 9)
    whole = count_macs(network, tuple(x.shape))
    network.fit_budget_(budget, [x])
    with torch.no_grad(), recording() as routes, torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        network(x)
    route = routes[0]
    places_once = 2 * 4 * 4 * (16 + 4 + 2)  # the places of four pixels, in three first layers, twice
    assert counter.get_total_flops() / 2 / whole == pytest.approx(budget, abs=places_once / whole + 2e-3)
    assert float(route.work.mean()) == pytest.approx(budget, abs=0.02)  # no place has more than all of it
    assert route.unit == "pixels"
    assert route.of == (13 * 9 * 4,)
    assert 0 < route.share < 1


def test_the_route_of_everything_heavy_is_all_of_it():
    network = drawn()
    with torch.no_grad(), recording() as routes:
        network(torch.rand(1, 3, 3, 4, dtype=torch.float64))
    assert routes[0].share == 1
    assert routes[0].work == pytest.approx(1)


def test_the_knob_is_a_threshold():
    network, x = drawn(), torch.rand(1, 3, 5, 4, dtype=torch.float64)
    once, _, light, heavy = network.costs()
    p = network.mixed(x)[1]
    for k in (-3.0, 0.0, 0.7):
        wanted = p / (once + heavy) ** k >= (1 - p) / (once + light) ** k
        assert torch.equal(p >= network.threshold_at(k), wanted)
    assert network.threshold_at(0) == 0.5


def test_two_means_separates_two_clusters():
    assert two_means(torch.tensor([0.1, 0.12, 0.08, 0.9, 0.7])) == pytest.approx(0.45)
    assert two_means(torch.full((3,), 0.3)) == pytest.approx(0.3)
    network, x = drawn(), torch.rand(1, 3, 7, 5, dtype=torch.float64)
    with torch.no_grad():
        network.threshold = two_means(network.mixed(x)[1])
        wanted = network(x)
        network.threshold = "adaptive"
        assert torch.equal(network(x), wanted)


def test_refined_pixels_are_light_ones_beside_heavy_ones():
    network, x = drawn(), torch.rand(1, 3, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        p = network.mixed(x)[1]
        network.threshold = float(p.max())
        sharp = network(x)
        network.refine = True
        smooth = network(x)
        changed = (sharp != smooth).any(1)[0].nonzero()
    at = F.pixel_shuffle((p >= network.threshold).view(1, 6, 6, 4).permute(0, 3, 1, 2).double(), 2)[0, 0].nonzero()
    assert 3 <= len(changed) <= 8
    assert all((place - at).abs().amax(1).min() == 1 for place in changed)
    i, j = changed[0].tolist()
    padded = F.pad(sharp, (1, 1, 1, 1), mode="replicate")
    torch.testing.assert_close(smooth[0, :, i, j], padded[0, :, i : i + 3, j : j + 3].mean((1, 2)))


def test_places_lie_in_the_pixel():
    torch.testing.assert_close(places(2), torch.tensor([[a, b, 1.0, 1.0] for a in (-0.5, 0.5) for b in (-0.5, 0.5)]))
    assert places(3)[:, :2].abs().max() == pytest.approx(2 / 3)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="scale must be at least 1, got 0"):
        PCSR(0)
    network = drawn()
    with pytest.raises(
        ValueError, match=r"budget must be at least 0\.\d+, what every place of a picture costs, got 0\.01"
    ):
        network.fit_budget_(0.01, [torch.rand(1, 3, 4, 4, dtype=torch.float64)])
    with pytest.raises(ValueError, match="found on pictures, got none"):
        network.fit_budget_(0.95)
    assert math.isfinite(network.threshold_at(30))
