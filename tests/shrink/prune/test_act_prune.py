import copy

import pytest
import torch
import torch.nn.functional as F
import torch_pruning  # noqa: F401 - imported here, so that no test pays for it
from torch import nn

from foveal.measure.cost import count_macs, count_parameters
from foveal.shrink.data import Data
from foveal.shrink.prune.act_prune import ActPrune, attention, costs, inactive, observe, prunable, remove


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3, 1, 1), nn.Conv2d(8, 6, 3, 1, 1)
        self.norm, self.inner, self.head = nn.BatchNorm2d(8), nn.Conv2d(6, 10, 3), nn.Linear(5, 3)
        self.last = nn.Conv2d(10, 5, 1)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = x + self.second(F.relu(self.norm(self.first(x))))
        return self.head(F.relu(self.last(F.relu(self.inner(x)))).mean((2, 3)))


LAYERS = {"first": "second", "inner": "last"}


def inputs(seed=0):
    return torch.randn(5, 3, 7, 7, generator=torch.Generator().manual_seed(seed))


def data(quality=lambda _: 0.0):
    labels = torch.arange(5) % 3
    return Data(inputs(), quality, batches=lambda step: (inputs(step), labels), loss=F.cross_entropy)


def test_attention_is_the_mean_of_absolute_powers():
    maps = torch.tensor([[[[1.0, -3.0]], [[0.0, 2.0]]], [[[2.0, 0.0]], [[0.0, 0.0]]]])
    torch.testing.assert_close(attention(maps), torch.tensor([1.5, 0.5]))
    torch.testing.assert_close(attention(maps, power=2), torch.tensor([3.5, 1.0]))


def test_filters_of_one_layer_alone_can_go():
    assert prunable(Network().eval(), inputs()) == LAYERS


def test_maps_are_read_after_norm_and_relu():
    model = Network().eval()
    scores, places = observe(model, LAYERS, inputs(), power=2)
    maps = F.relu(model.norm(model.first(F.relu(model.stem(inputs())))))
    torch.testing.assert_close(scores["first"], maps.square().mean((0, 2, 3)))
    assert places == {"first": 25, "inner": 9}
    assert not model.first._forward_hooks
    assert not model.second._forward_pre_hooks


def test_costs_are_shares():
    model = Network()
    assert costs(model, LAYERS) == {"first": 432 / 972, "inner": 540 / 972}
    assert costs(model, LAYERS, {"first": 25, "inner": 9}) == {"first": 10800 / 15660, "inner": 4860 / 15660}


def test_filters_at_or_below_the_threshold_go_and_one_stays():
    scores = {"a": torch.tensor([0.1, 0.5, 0.2]), "b": torch.tensor([0.1, 0.2, 0.05]), "c": torch.tensor([9.0])}
    found = inactive(scores, {"a": 0.2, "b": 0.6, "c": 0.2}, 1.0)
    assert {name: x.tolist() for name, x in found.items()} == {"a": [0, 2], "b": [0, 2]}
    assert not inactive(scores, {"a": 0.0, "b": 0.0, "c": 1.0}, 1.0)


def test_removing_filters_whose_maps_are_zero_changes_nothing():
    model = Network().eval()
    with torch.no_grad():
        model.norm.weight[[2, 5]] = 0
        model.norm.bias[[2, 5]] = -1
        model.inner.weight[3] = 0
        model.inner.bias[3] = -1
    smaller = remove(model, {"first": torch.tensor([2, 5]), "inner": torch.tensor([3])}, inputs())
    torch.testing.assert_close(smaller(inputs()), model(inputs()))
    assert smaller.first.weight.shape == (6, 6, 3, 3)
    assert smaller.second.weight.shape == (6, 6, 3, 3)
    assert smaller.norm.num_features == 6
    assert model.first.weight.shape == (8, 6, 3, 3)


@pytest.mark.parametrize("policy", ["parameters", "macs"])
def test_a_share_of_the_cost_goes(policy):
    model = Network()
    smaller = ActPrune(policy=policy, target=0.4, tolerance=0.15, steps=1, increment=0.3).apply(model, data())
    if policy == "parameters":
        share = 1 - count_parameters(smaller) / count_parameters(Network())
    else:
        share = 1 - count_macs(smaller, (1, 3, 7, 7)) / count_macs(Network(), (1, 3, 7, 7))
    assert 0.4 <= share <= 0.4 * 1.15
    assert smaller(inputs()).shape == (5, 3)
    assert not smaller.training


def test_the_accuracy_policy_stays_within_the_loss_and_rolls_back():
    def quality(network):  # a loss of 1 for each filter that went
        return float(network.first.out_channels + network.inner.out_channels)

    smaller = ActPrune(policy="accuracy", target=7, steps=1, increment=0.4, rounds=12).apply(Network(), data(quality))
    assert 18 - 7 <= quality(smaller) <= 18 - 5
    whole = ActPrune(policy="accuracy", target=0, steps=1, rounds=3).apply(Network(), data(quality))
    assert quality(whole) == 18


def test_the_model_itself_keeps_its_weights():
    model = Network()
    before = copy.deepcopy(model.state_dict())
    ActPrune(target=0.3, tolerance=0.3, steps=1).apply(model, data())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ({"policy": "memory"}, "policy must be one of accuracy, parameters, macs, got 'memory'"),
        ({"policy": "accuracy", "target": -1.0}, "target must be at least 0 for accuracy"),
        ({"target": 1.0}, r"target must be in \(0, 1\) for parameters, got 1.0"),
        ({"tolerance": 0.0}, "tolerance must be above 0, got 0.0"),
        ({"increment": 0.0}, "increment must be above 0, got 0.0"),
        ({"steps": 0}, r"rounds, steps and power must be at least 1, got \(50, 0, 1\)"),
    ],
)
def test_settings_that_cannot_be(words, text):
    with pytest.raises(ValueError, match=text):
        ActPrune(**words)


def test_what_cannot_be_pruned_raises(monkeypatch):
    with pytest.raises(ValueError, match="ActPrune trains and needs Data with batches and loss"):
        ActPrune().apply(Network(), inputs())
    with pytest.raises(ValueError, match="filters that can go are 78% of the parameters, the target is 90%"):
        ActPrune(target=0.9).apply(Network(), data())
    with pytest.raises(ValueError, match="1 rounds did not meet the target of 30%"):
        ActPrune(target=0.3, rounds=1, increment=1e-6).apply(Network(), data())
    alone = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(50, 3))
    with pytest.raises(ValueError, match="Sequential has no convolution whose filters go to one layer alone"):
        ActPrune().apply(alone, data())
    monkeypatch.setitem(__import__("sys").modules, "torch_pruning", None)
    with pytest.raises(ModuleNotFoundError, match="ActPrune needs torch-pruning"):
        prunable(Network(), inputs())
