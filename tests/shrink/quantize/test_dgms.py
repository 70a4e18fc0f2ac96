import math

import pytest
import torch
from torch import nn

from foveal.shrink.quantize.dgms import DGMS, GaussianMixture, kmeans, mixed, responsibilities
from foveal.shrink.quantize.fake import Quantizer
from foveal.shrink.quantize.packed import load_packed_, packed_bytes, save_packed


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.Conv2d(6, 7, 3), nn.Flatten(), nn.Linear(7, 9), nn.ReLU(), nn.Linear(9, 2)
    )


def test_clusters_by_hand():
    centres, label = kmeans(torch.tensor([[0.0, 0.2, 5.0], [1.0, 5.2, 4.8]]), 2)
    assert centres.tolist() == pytest.approx([0.4, 5.0])
    assert label.tolist() == [[0, 0, 1], [0, 1, 1]]
    centres, label = kmeans(torch.tensor([1.0, 2.0, 4.0]), 4)  # an empty cluster keeps its centre
    assert centres.tolist() == [1.0, 2.0, 3.0, 4.0]
    assert label.tolist() == [0, 1, 3]


def test_clusters_are_the_nearest_centres_and_centres_their_means():
    values = torch.randn(500, generator=torch.Generator().manual_seed(0))
    centres, label = kmeans(values, 5)
    assert torch.equal((values[:, None] - centres).abs().argmin(1), label)
    torch.testing.assert_close(centres, torch.stack([values[label == k].mean() for k in range(5)]))


def plain(w, share, mean, deviation, tau):
    """One weight after another, with the densities written out."""
    soft = []
    for x in w.flatten().tolist():
        density = [
            p / (math.sqrt(2 * math.pi) * s) * math.exp(-((x - m) ** 2) / (2 * s**2))
            for p, m, s in zip(share, mean, deviation, strict=True)
        ]
        r = [d / sum(density) for d in density]
        weights = [math.exp(v / tau) for v in r]
        soft.append((r, sum(a * m for a, m in zip(weights, mean, strict=True)) / sum(weights)))
    return soft


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5, 1)])
def test_it_follows_the_formula(shape):
    share, mean, deviation = [0.5, 0.2, 0.3], [0.0, -0.7, 0.9], [0.3, 0.4, 0.2]
    w = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    parts = {
        name: torch.tensor(value, dtype=torch.float64)
        for name, value in (("share", share), ("mean", mean), ("deviation", deviation))
    }
    wanted = plain(w, share, mean, deviation, 0.2)
    r, soft = responsibilities(w, **parts), mixed(w, **parts, tau=0.2)
    assert r.shape == (*shape, 3)
    assert r.flatten().tolist() == pytest.approx([x for row, _ in wanted for x in row], abs=1e-12)
    assert soft.flatten().tolist() == pytest.approx([s for _, s in wanted], abs=1e-12)


def test_gradients_reach_weights_and_mixture():
    leaves = [
        torch.tensor(v, dtype=torch.float64, requires_grad=True)
        for v in ([0.1, 0.4, -0.2, 0.6], [0.5, 0.2, 0.3], [0.0, -0.7, 0.9], [0.3, 0.4, 0.2], 0.3)
    ]
    assert torch.autograd.gradcheck(lambda w, p, m, s, t: mixed(w, share=p, mean=m, deviation=s, tau=t), leaves)
    mixture, weight = GaussianMixture(torch.randn(6, 5), 2, tau=0.3), torch.randn(6, 5, requires_grad=True)
    mixture(weight).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in (weight, *mixture.parameters()))


def test_far_values_do_not_underflow():
    mixture = GaussianMixture(torch.randn(50), 2)
    w = torch.tensor([1e4, -1e4], requires_grad=True)
    out = mixture(w)
    out.sum().backward()
    assert out.isfinite().all()
    assert w.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in mixture.parameters())


def test_it_starts_from_the_clusters_one_of_which_is_zero():
    weight = torch.cat([torch.full((60,), 0.02), torch.full((25,), -0.5), torch.full((15,), 0.8)])
    mixture = GaussianMixture(weight, 2)
    parts = mixture.parts()
    assert mixture.codebook()[0] == 0
    assert sorted(mixture.codebook().tolist())[:2] == pytest.approx([-0.5, 0.0])
    assert float(parts["share"].detach().sum()) == pytest.approx(1)
    assert float(parts["share"][0].detach()) == pytest.approx(0.6, abs=0.01)
    assert float(parts["deviation"][0].detach()) == pytest.approx(0.02, rel=1e-3)
    hard = mixture.eval()(weight)
    assert hard.tolist() == pytest.approx([0.0] * 60 + [-0.5] * 25 + [0.8] * 15)


def test_soft_weights_become_hard_ones():
    weight = torch.randn(30, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mixture = GaussianMixture(weight, 3).eval()
    hard, parts = mixture(weight), mixture.parts()
    gaps = [float((mixed(weight, **parts, tau=tau) - hard).detach().abs().mean()) for tau in (0.3, 0.03, 0.003, 1e-6)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 0.01
    assert gaps[-1] < 1e-9
    assert torch.equal(mixture.train()(weight), mixed(weight, **parts, tau=mixture.tau.exp()))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_file_holds_indices_and_means(tmp_path, bits):
    model = DGMS(bits).apply(network()).eval()
    assert isinstance(model[1].weight_quantizer, Quantizer)
    assert not hasattr(model[0], "weight_quantizer")
    x, path = torch.randn(2, 3, 5, 5), tmp_path / "model.safetensors"
    assert save_packed(model, path) == packed_bytes(model)
    rest = 4 * (6 * 27 + 6 + 7 + 9 + 2 * 9 + 2)
    assert packed_bytes(model) == rest + sum(-(-n * bits // 8) + 4 * 2**bits for n in (7 * 6 * 9, 9 * 7))
    other = DGMS(bits).apply(network())
    for p in other.parameters():
        p.data.add_(0.1)
    assert torch.equal(load_packed_(other, path)(x), model(x))


def test_errors():
    for bits in (0, 9):
        with pytest.raises(ValueError, match=f"bits must be in 1 to 8, got {bits}"):
            DGMS(bits)
    with pytest.raises(ValueError, match=r"tau must be above 0, got 0\.0"):
        DGMS(tau=0.0)
    with pytest.raises(ValueError, match="is quantised already"):
        DGMS().apply(DGMS().apply(network()))
