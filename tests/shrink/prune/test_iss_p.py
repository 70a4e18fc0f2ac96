import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveal.shrink.data import Data
from foveal.shrink.prune.iss_p import ISSP, fix_, prunable, shrink_, shrunk
from foveal.shrink.prune.masks import bake_, density, masked
from foveal.shrink.step import Step


def plain(weight, sparsity, alpha):
    """One value at a time: as many of the largest as stay, the others a share of themselves."""
    values = weight.flatten().tolist()
    stay = sorted(range(len(values)), key=lambda i: -abs(values[i]))[: round((1 - sparsity) * len(values))]
    return torch.tensor([v if i in stay else alpha * v for i, v in enumerate(values)]).view(weight.shape)


@pytest.mark.parametrize(("shape", "sparsity"), [((1,), 0.9), ((5, 3, 3, 3), 0.9), ((7, 63), 0.5), ((4, 9), 0.0)])
@pytest.mark.parametrize("alpha", [0.0, 0.95, 1.0])
def test_a_step_equals_the_plain_one(shape, sparsity, alpha):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(shrunk(weight, sparsity=sparsity, alpha=alpha), plain(weight, sparsity, alpha))


def test_a_weight_that_grew_returns_and_one_that_stays_small_fades():
    weight = torch.tensor([3.0, 2.0, 1.0, 0.1])
    first = shrunk(weight, sparsity=0.5, alpha=0.5)
    assert first.tolist() == pytest.approx([3.0, 2.0, 0.5, 0.05])
    first[2] = 9.0  # a training step
    assert shrunk(first, sparsity=0.5, alpha=0.5).tolist() == pytest.approx([3.0, 1.0, 9.0, 0.025])


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 1, 3, padding=1))


def zeros(model):
    return [int((layer.weight == 0).sum()) for layer in prunable(model).values()]


def test_fixed_masks_hold_the_largest_and_keep_the_zeros_in_training():
    model = network()
    before = model[0].weight.detach().clone()
    fix_(model, sparsity=0.8)
    assert [int(mask.sum()) for mask in masked(model).values()] == [9, 9]
    torch.testing.assert_close(model[0].weight, plain(before, 0.8, 0.0))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    F.mse_loss(model(torch.rand(2, 1, 6, 5)), torch.ones(2, 1, 6, 5)).backward()
    optimizer.step()
    assert zeros(bake_(model)) == [36, 36]


def test_shrinking_touches_weights_in_place_and_biases_never():
    model = network()
    weights, bias = [p.detach().clone() for p in model[2].parameters()]
    assert shrink_(model, sparsity=0.8, alpha=0.9) is model
    torch.testing.assert_close(model[2].weight, plain(weights, 0.8, 0.9))
    assert torch.equal(model[2].bias, bias)


def test_the_step_trains_to_the_sparsity_that_it_is_told():
    steps = []

    def batches(step):
        steps.append(step)
        x = torch.rand(2, 1, 6, 5, generator=torch.Generator().manual_seed(step))
        return x, x.flip(-1)

    step = ISSP(sparsity=0.8, steps=7, shrinking=0.4, lr=1e-2)
    assert isinstance(step, Step)
    model, before = network(), network()
    data = Data(torch.rand(1, 1, 6, 5), lambda _: 0.0, batches=batches, loss=F.l1_loss)
    assert step.apply(model, data) is model
    assert steps == list(range(7))
    assert zeros(model) == [36, 36]
    assert density(model) == pytest.approx(0.2)
    assert not model.training
    assert set(model.state_dict()) == set(before.state_dict())
    assert not torch.equal(model[0].bias, before[0].bias)


def test_errors():
    for words, text in (
        ({"sparsity": 1.0}, r"sparsity must be in \[0, 1\), got 1.0; it is the share that becomes zero"),
        ({"alpha": 1.5}, r"alpha must be in \[0, 1\], got 1.5; it is what a step leaves of a weight"),
        ({"steps": 1}, r"steps must be at least 2 and shrinking in \(0, 1\), got 1 and 0.5"),
        ({"shrinking": 1.0}, r"steps must be at least 2 and shrinking in \(0, 1\), got 1000 and 1.0"),
        ({"lr": 0.0}, "lr must be above 0, got 0.0"),
    ):
        with pytest.raises(ValueError, match=text):
            ISSP(**words)
    with pytest.raises(ValueError, match="ISSP trains and needs Data with batches and loss; give both"):
        ISSP().apply(network(), torch.rand(1, 1, 6, 5))
    with pytest.raises(ValueError, match="ReLU has no linear layer or convolution to prune"):
        prunable(nn.ReLU())
    with pytest.raises(ValueError, match=r"the model has masks already \(0\); call bake_ first"):
        shrink_(fix_(network(), sparsity=0.5), sparsity=0.5)
