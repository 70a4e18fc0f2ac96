import itertools

import numpy as np
import pytest
import torch
from torch import nn

from foveal.shrink.prune.masks import density, masked
from foveal.shrink.prune.rd_prune import RDPrune, distortions, prunable, pruned, shares, worst_distance


def network(seed=0):
    torch.manual_seed(seed)
    layers = nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(16, 3)
    return nn.Sequential(*layers).eval()


def inputs():
    return torch.rand(5, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def test_a_distortion_is_that_of_the_network_with_one_layer_pruned():
    model, x = network(), inputs()
    table = distortions(model, x, choices=(1.0, 0.5))
    assert table.shape == (3, 2)
    assert table[:, 0].tolist() == [0, 0, 0]
    other = network()
    with torch.no_grad():
        weight = other[2].weight
        weight[weight.abs() < weight.abs().flatten().sort().values[108]] = 0  # the smaller half of 216
        difference = (other(x) - model(x)).square()
    assert table[1, 1] == pytest.approx(difference.mean().item())
    worst = distortions(model, x, choices=(0.5,), worst_case=True)
    assert worst[1, 0] == pytest.approx(difference.mean(1).max().item())


def test_the_worst_case_is_the_mean_over_the_entries_of_one_input():
    assert worst_distance(torch.tensor([[1.0, 3.0], [0.0, 4.0]]), torch.zeros(2, 2)) == 8.0


def test_a_pruned_layer_is_whole_again_afterwards():
    layer = nn.Linear(5, 3)
    before = layer.weight.detach().clone()
    with pruned(layer, 0.4):
        assert int((layer.weight != 0).sum()) == 6
    assert torch.equal(layer.weight, before)


def test_shares_are_those_of_brute_force():
    rng, sizes, choices = np.random.default_rng(0), [40, 90, 60, 25], (1.0, 0.6, 0.3, 0.1)
    for sparsity in (0.3, 0.6, 0.85):
        harm = np.sort(rng.random((4, 4)), axis=1)
        budget = round((1 - sparsity) * sum(sizes))
        possible = [
            (sum(harm[i, p] for i, p in enumerate(picks)), picks)
            for picks in itertools.product(range(4), repeat=4)
            if sum(round(choices[p] * size) for p, size in zip(picks, sizes, strict=True)) <= budget
        ]
        assert shares(harm, sizes, sparsity=sparsity, choices=choices) == [choices[p] for p in min(possible)[1]]


def test_the_sparsity_is_met_and_no_layer_vanishes():
    model = RDPrune(0.8).apply(network(), inputs())
    assert 0.17 < density(model) <= 0.2
    assert all(mask.any() for mask in masked(model).values())
    assert model(inputs()).shape == (5, 3)


def test_the_layer_that_matters_least_is_pruned_most():
    model = network()
    with torch.no_grad():
        model[4].weight.mul_(50)
        model[2].weight[:2] = 0  # two maps of four are constant: their weights are free
    found = masked(RDPrune(0.6).apply(model, inputs()))
    assert found["2"].float().mean() < 0.5 < found["4"].float().mean()
    assert not found["2"][:2].any()


def test_a_pruned_model_can_be_pruned_further():
    model = RDPrune(0.5).apply(network(), inputs())
    first = masked(model)
    zeros = {name: ~mask.clone() for name, mask in first.items()}
    second = masked(RDPrune(0.8).apply(model, inputs()))
    assert density(model) <= 0.2
    assert all(not second[name][zero].any() for name, zero in zeros.items())


def test_masks_hold_while_the_network_trains():
    model = RDPrune(0.7).apply(network(), inputs())
    model(inputs()).square().mean().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.5 * parameter.grad
    assert density(model) <= 0.3
    assert len(prunable(model)) == 3


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ({"sparsity": 1.0}, r"sparsity must be in \[0, 1\), got 1.0"),
        ({"choices": (0.5, 1.0)}, "choices must be descending shares"),
        ({"choices": (1.0, 0.0)}, r"choices must be in \(0, 1\], got 1.0 to 0.0"),
        ({"sparsity": 0.995}, "a sparsity of 0.995 needs shares below 0.01; add smaller ones"),
    ],
)
def test_settings_that_cannot_be(words, text):
    with pytest.raises(ValueError, match=text):
        RDPrune(**words)


def test_it_needs_data():
    with pytest.raises(ValueError, match="RDPrune observes activations and needs data, got none"):
        RDPrune(0.5).apply(network())
