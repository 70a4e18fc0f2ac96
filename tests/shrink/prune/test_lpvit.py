import copy

import pytest
import torch
from torch import nn

from foveal.shrink.prune.lpvit import BlockLinear, LPViT, block_sums, corrected, distortion, packed_
from foveal.shrink.prune.masks import block_mask, density, is_blocks, masked


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network(seed=0, wide=24):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(16, wide),
        nn.GELU(),
        nn.Linear(wide, 16, bias=False),
        nn.Linear(16, 8),
        nn.Flatten(),
        nn.Linear(24, 5),
    ).eval()


def tokens(count=12):
    return drawn(count, 3, 16, seed=1)


def test_blocks_are_summed():
    products = torch.arange(8.0).view(2, 4)
    assert block_sums(products, (1, 2)).tolist() == [1, 5, 9, 13]
    assert block_sums(products.expand(3, 2, 4), (2, 4)).tolist() == [[28]] * 3


def test_distortion_adds_what_pictures_see_together():
    sums = torch.tensor([[3.0, 1.0, -1.0], [3.0, 1.0, 1.5]])
    order, curve = distortion(sums)
    assert order.tolist() == [1, 2, 0]
    assert curve.tolist() == [0, 1, (0 + 6.25) / 2, (9 + 5.5**2) / 2]
    assert distortion(torch.tensor([[1.0, -1.1]]))[1].tolist() == [0, 1, 1]  # never falling


def test_the_estimate_is_the_true_distortion_of_a_linear_network():
    """E over many probes of (vᵀ J Δw)² is ‖J Δw‖², and a linear network has no higher terms."""
    model, block = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3)).eval(), (4, 2)
    x = drawn(2000, 8)
    from foveal.shrink.prune.lpvit import _observe

    sums, moments, seen = _observe(model, {"0": model[0]}, x, block, seed=0, batch=500)
    assert seen == {"0": 1}
    order, curve = distortion(sums["0"])
    pruned = copy.deepcopy(model)
    kept = torch.ones(8, dtype=torch.bool)
    kept[order[:3]] = False
    grid = kept.view(2, 4).repeat_interleave(4, 0).repeat_interleave(2, 1)
    with torch.no_grad():
        pruned[0].weight.mul_(grid)
        true = (pruned(x) - model(x)).square().sum(1).mean()
    assert float(curve[3]) == pytest.approx(float(true), rel=0.15)
    torch.testing.assert_close(moments["0"][:-1, :-1].float(), x.mT @ x, rtol=1e-3, atol=1e-2)
    assert moments["0"][-1, -1] == 2000


def test_correction_is_least_squares():
    x, weight = drawn(200, 6).double(), drawn(4, 6, seed=1).double()
    x[:, 3:] += x[:, :3]  # inputs that stay can stand in for those that go
    mask = torch.tensor([[True] * 3 + [False] * 3] * 2 + [[True] * 6] * 2)
    made = corrected(weight, mask, x.mT @ x / 200, (2, 3), damping=0.0)
    best = torch.linalg.lstsq(x[:, :3], x @ weight[:2].mT).solution.mT
    torch.testing.assert_close(made[:2, :3], best)
    assert not made[:2, 3:].any()
    assert torch.equal(made[2:], weight[2:])
    tied = corrected(weight, mask, x.mT @ x / 200, (2, 3), damping=1e9)
    torch.testing.assert_close(tied, weight * mask, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("correct", [True, False])
@pytest.mark.parametrize("keep", [1.0, 0.5, 0.1])
def test_blocks_stay_as_many_as_asked(keep, correct):
    model = LPViT(keep=keep, block=(8, 4), correct=correct).apply(network(), tokens())
    masks = masked(model)
    assert sorted(masks) == ["0", "2", "3"]
    assert all(is_blocks(mask, (8, 4)) for mask in masks.values())
    kept, total = (sum(int(m.sum()) if part else m.numel() for m in masks.values()) for part in (True, False))
    assert kept <= max(keep * total, 3 * 32)
    assert kept >= keep * total - 3 * 32 * 2
    assert all(mask.any() for mask in masks.values())


def test_second_order_disturbs_less_than_magnitude_and_correction_less_again():
    model, x = network(3, wide=64), tokens(200)
    x[..., ::2] *= 0.05  # weights of faint inputs are as large, and matter less
    changes = []
    for correct in (True, False):
        pruned = LPViT(keep=0.5, block=(8, 4), correct=correct).apply(copy.deepcopy(model), x)
        changes.append((pruned(x) - model(x)).square().mean().item())
    rival = copy.deepcopy(model)
    with torch.no_grad():
        for at in (0, 2, 3):
            rival[at].weight.mul_(block_mask(rival[at].weight.abs(), 0.5, (8, 4)))
    changes.append((rival(x) - model(x)).square().mean().item())
    assert changes == sorted(changes)
    assert changes[2] > 1.2 * changes[1] > 1.2 * changes[0]


def test_power_prunes_harder():
    shares = [density(LPViT(keep=0.8, block=(8, 4), power=p).apply(network(), tokens())) for p in (0.0, 0.3, 100.0)]
    assert shares[0] > shares[1] > shares[2]


def test_the_same_seed_prunes_the_same():
    first, again, other = (
        LPViT(keep=0.4, block=(4, 4), seed=seed).apply(network(), tokens()).state_dict() for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("block", [(8, 4), (16, 8)])
def test_packed_layers_equal_masked_ones(block):
    model = network(wide=32)
    model = LPViT(keep=0.4, block=block).apply(model, tokens())
    assert sorted(masked(model)) == (["0", "2", "3"] if block == (8, 4) else ["0", "2"])
    before = model(tokens())
    packed = packed_(model, block)
    assert sum(isinstance(m, BlockLinear) for m in packed.modules()) == (3 if block == (8, 4) else 2)
    torch.testing.assert_close(packed(tokens()), before, rtol=0, atol=1e-5)
    assert packed[0].values.shape[0] * block[0] * block[1] < 32 * 16


def test_masked_layers_train_on():
    model = LPViT(keep=0.4, block=(8, 4)).apply(network(), tokens())
    model(tokens()).square().mean().backward()
    weight = model[0].parametrizations.weight.original
    assert weight.grad[masked(model)["0"]].any()
    assert not weight.grad[~masked(model)["0"]].any()


def test_wrong_settings_and_models_raise():
    for keep in (0.0, 1.5):
        with pytest.raises(ValueError, match=r"keep must be in \(0, 1\], got"):
            LPViT(keep=keep)
    with pytest.raises(ValueError, match="power must be at least 0 and block at least 1×1"):
        LPViT(power=-1.0)
    with pytest.raises(ValueError, match=r"Sequential has no linear layer that blocks of \(5, 5\) divide"):
        LPViT(block=(5, 5)).apply(network(), tokens())
    with pytest.raises(ValueError, match="LPViT observes activations and needs data"):
        LPViT().apply(network())
    with pytest.raises(ValueError, match="Sequential has no pruned layer; apply LPViT first"):
        packed_(network(), (8, 4))
    model = LPViT(block=(8, 4)).apply(network(), tokens())
    with pytest.raises(ValueError, match=r"layer '0' is not pruned in blocks of \(24, 16\)"):
        packed_(model, (24, 16))
    with pytest.raises(ValueError, match="the model is pruned already"):
        LPViT(block=(8, 4)).apply(model, tokens())
