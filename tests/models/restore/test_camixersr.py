import math

import pytest
import torch
import torch.nn.functional as F

from foveal.measure.cost import count_macs
from foveal.models.restore.camixersr import CAMixer, CAMixerSR, loss, unwindowed, warped, windows
from foveal.runtime.route import recording

SMALL = {"dim": 8, "depths": (1, 2), "window": 3}


def drawn(build, *args, **words):
    torch.manual_seed(0)
    network = build(*args, **words).double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network


def sample(x, row, column):
    """One picture, (C, H, W), at a place between its pixels."""
    row, column = (min(max(float(a), 0), n - 1) for a, n in zip((row, column), x.shape[1:], strict=True))
    i, j = min(int(row), x.shape[1] - 2), min(int(column), x.shape[2] - 2)
    a, b = row - i, column - j
    upper, lower = ((1 - b) * x[:, n, j] + b * x[:, n, j + 1] for n in (i, i + 1))
    return (1 - a) * upper + a * lower


def reference(mixer, x, condition, ratio):
    """Window by window, pixel by pixel."""
    side, (height, width) = mixer.window, x.shape[2:]
    v, out = mixer.project_v(x), torch.zeros_like(x)
    place = torch.zeros(len(x), 2, height, width, dtype=x.dtype)
    for i in range(height):
        for j in range(width):
            place[:, :, i, j] = torch.tensor([2 * (n % side) / (side - 1) - 1 for n in (i, j)])
    offsets, score, channels, space = mixer.predictor(torch.cat([v, condition, place], 1))
    columns = width // side
    for b in range(len(x)):
        hard = score[b, :, 0].argsort(descending=True)[: math.ceil(ratio * score.shape[1])].tolist()
        for n in range(score.shape[1]):
            top, left = n // columns * side, n % columns * side
            pixels = [(i, j) for i in range(top, top + side) for j in range(left, left + side)]
            values = torch.stack([v[b, :, i, j] for i, j in pixels])
            if n in hard:
                q = torch.stack([mixer.project_q(x[b, :, i, j]) for i, j in pixels])
                at = [(i + offsets[b, 1, i, j], j + offsets[b, 0, i, j]) for i, j in pixels]
                near = [x[b, :, i, j] + sample(x[b], *a) for (i, j), a in zip(pixels, at, strict=True)]
                k = torch.stack([mixer.project_k(a) for a in near])
                values = (q @ k.T).softmax(1) @ values
            else:
                values = values * torch.stack([space[b, :, i, j] for i, j in pixels])
            for (i, j), value in zip(pixels, values, strict=True):
                out[b, :, i, j] = value
    return mixer.project_out(F.gelu(mixer.spatial(out)) * channels + out)


@pytest.mark.parametrize("ratio", [0, 0.3, 0.5, 1])
def test_the_mixer_equals_the_equations(ratio):
    mixer, x = drawn(CAMixer, 8, 3), torch.rand(2, 8, 6, 9, dtype=torch.float64)
    condition = torch.rand(2, 2, 6, 9, dtype=torch.float64)
    with torch.no_grad():
        out, hard = mixer(x, condition, ratio)
        torch.testing.assert_close(out, reference(mixer, x, condition, ratio), rtol=0, atol=1e-10)
    assert hard.sum(1).tolist() == [math.ceil(6 * ratio)] * 2


def test_training_on_the_same_windows_gives_the_same_and_its_gradients(monkeypatch):
    mixer, x = drawn(CAMixer, 8, 3), torch.rand(2, 8, 6, 6, dtype=torch.float64, requires_grad=True)
    condition = torch.rand(2, 2, 6, 6, dtype=torch.float64)
    out, hard = mixer(x, condition, 0.5)
    weights = [x, mixer.project_q.weight, mixer.project_k.weight, mixer.predictor.offsets[0].weight]
    gradients = torch.autograd.grad(out.square().sum(), weights)
    monkeypatch.setattr(F, "gumbel_softmax", lambda score, hard: torch.stack([chosen, 1 - chosen], -1))
    chosen = hard
    trained, _ = mixer.train()(x, condition, 0.5)
    torch.testing.assert_close(trained, out)
    torch.testing.assert_close(torch.autograd.grad(trained.square().sum(), weights), gradients)


def test_the_choice_is_learnt():
    torch.manual_seed(0)
    network = CAMixerSR(2, **SMALL)
    loss(network, (torch.rand(2, 3, 6, 6), torch.rand(2, 3, 12, 12))).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
    assert network.groups[0].blocks[0].mixer.predictor.classify[0].weight.grad.abs().sum() > 0


def test_the_loss_is_the_error_and_the_distance_to_the_ratio():
    torch.manual_seed(0)
    network, x, y = CAMixerSR(2, ratio=0.25, **SMALL), torch.rand(2, 3, 6, 6), torch.rand(2, 3, 12, 12)
    torch.manual_seed(1)
    out, masks = network.routed(x)
    torch.manual_seed(1)
    wanted = (out - y).abs().mean() + (masks.mean() - 0.25) ** 2
    torch.testing.assert_close(loss(network, (x, y)), wanted)


def test_with_all_windows_nothing_is_drawn():
    network, x = drawn(CAMixerSR, 2, ratio=1.0, **SMALL), torch.rand(1, 3, 6, 9, dtype=torch.float64)
    with torch.no_grad():
        whole = network(x)
        torch.testing.assert_close(network.train()(x), whole, rtol=0, atol=0)


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (3, 6)])
@pytest.mark.parametrize(("scale", "channels"), [(2, 3), (3, 1)])
def test_shape(scale, channels, size):
    out = CAMixerSR(scale, in_channels=channels, **SMALL)(torch.rand(2, channels, *size))
    assert out.shape == (2, channels, scale * size[0], scale * size[1])


def test_windows_and_back():
    x = torch.arange(2 * 3 * 4 * 6.0).view(2, 3, 4, 6)
    rows = windows(x, 2)
    assert rows.shape == (2, 6, 4, 3)
    assert torch.equal(rows[1, 4], x[1, :, 2:, 2:4].flatten(1).T)
    assert torch.equal(unwindowed(rows, 2, 4), x)


def test_samples_lie_beside_the_pixels():
    x = torch.rand(1, 2, 4, 5, dtype=torch.float64)
    at = torch.tensor([[[[1.0, 2.0], [4.0, 0.0]]]], dtype=torch.float64)
    offsets = torch.tensor([[[[0.5, 1.0], [3.0, -2.0]]]], dtype=torch.float64)
    found = warped(x, offsets, at)[0, 0]
    torch.testing.assert_close(found[0], (x[0, :, 3, 1] + x[0, :, 3, 2]) / 2)
    torch.testing.assert_close(found[1], x[0, :, 0, 4])


@pytest.mark.parametrize("budget", [0.8, 0.9, 1])
def test_a_budget_is_a_ratio_and_counted(budget):
    network, shape = CAMixerSR(2, dim=16, depths=(2,), window=8), (1, 3, 64, 64)
    network.fit_budget_(1)
    assert network.ratio == 1
    whole = count_macs(network, shape)
    assert sum(network.costs()) * 64**2 == pytest.approx(whole, rel=2e-3)  # gates of channels are counted once
    network.fit_budget_(budget)
    assert count_macs(network, shape) / whole == pytest.approx(budget, abs=5e-3)
    with torch.no_grad(), recording() as routes:
        network.eval()(torch.rand(shape))
    assert float(routes[0].work.mean()) == pytest.approx(budget, abs=5e-3)
    assert routes[0].unit == "windows"
    assert routes[0].of == (64, 64)
    assert routes[0].share == pytest.approx(network.ratio, abs=1 / 64)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="scale must be at least 1, got 0"):
        CAMixerSR(0)
    with pytest.raises(
        ValueError, match=r"ratio must be in \[0, 1\], got 1\.5; 0\.5 gives half of the windows attention"
    ):
        CAMixerSR(2, ratio=1.5)
    with pytest.raises(ValueError, match="budget must be at least"):
        CAMixerSR(2, **SMALL).fit_budget_(0.1)
