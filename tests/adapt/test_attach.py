import copy
from functools import partial

import pytest
import torch
from torch import nn

from foveal.adapt.attach import LowRankPart, attach_, difference, linear_layers, parts
from foveal.adapt.delta import AdaptError, Dense, LowRank, Replaced


def network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    net.add_module("head", nn.Linear(3, 2))
    return net.eval()


def trained(model, **options):
    """A copy with parts that are not zero any more."""
    work = copy.deepcopy(model)
    for part in attach_(work, partial(LowRankPart, **options)).values():
        nn.init.normal_(part.up)
    return work


def test_a_new_part_changes_nothing_and_then_what_the_delta_says():
    model = network()
    x = torch.randn(5, 6)
    work = copy.deepcopy(model)
    made = attach_(work, partial(LowRankPart, rank=2))
    assert list(made) == ["0.weight", "3.weight"]
    assert torch.equal(work(x), model(x))
    assert {name for name, p in work.named_parameters() if not p.requires_grad} == {
        "0.parametrizations.weight.original",
        "3.parametrizations.weight.original",
    }
    work = trained(model, rank=2, alpha=6)
    delta = difference(model, work, method="by hand")
    undo = delta.fold_(model)
    torch.testing.assert_close(model(x), work(x))
    undo()
    assert isinstance(delta.changes["0.weight"], LowRank)
    assert delta.about == {"method": "by hand"}
    assert list(parts(work)) == ["0.weight", "3.weight"]
    assert parts(model) == {}


def test_a_convolution_is_a_matrix_too():
    conv = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2))
    work = copy.deepcopy(conv)
    part = attach_(work, partial(LowRankPart, rank=3), where=lambda _, module: isinstance(module, nn.Conv2d))[
        "0.weight"
    ]
    nn.init.normal_(part.up)
    x = torch.randn(1, 4, 5, 5)
    expected = work(x)
    difference(conv, work).fold_(conv)
    torch.testing.assert_close(conv(x), expected)


def test_other_parameters_and_buffers_are_differences():
    model = network()
    work = copy.deepcopy(model)
    with torch.no_grad():
        work[3].bias += 1
        work[1].running_mean += 2
    work.head = nn.Linear(3, 5)
    delta = difference(model, work)
    assert {name: type(change) for name, change in delta.changes.items()} == {
        "3.bias": Dense,
        "1.running_mean": Dense,
        "head.weight": Replaced,
        "head.bias": Replaced,
    }
    assert set(delta.base) == set(delta.changes)
    delta.fold_(model)
    x = torch.randn(4, 6)
    torch.testing.assert_close(model(x), work(x))


def test_gradients_reach_the_factors_alone():
    work = trained(network(), rank=1)
    work(torch.randn(3, 6)).sum().backward()
    part = parts(work)["0.weight"]
    assert part.up.grad.abs().sum() > 0
    assert part.down.grad.abs().sum() > 0
    assert work[0].parametrizations.weight.original.grad is None


def test_which_layers_are_chosen():
    chosen = [name for name, module in network().named_modules() if linear_layers(name, module)]
    assert chosen == ["0", "3"]


def grown():
    work = copy.deepcopy(network())
    work.add_module("more", nn.Linear(2, 2))
    return work


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: LowRankPart(torch.zeros(4, 6), rank=5), r"rank must be in 1…4 for a matrix of 4×6, got 5"),
        (lambda: attach_(nn.Sequential(nn.ReLU()), LowRankPart), "no layer of Sequential is chosen"),
        (lambda: attach_(trained(network(), rank=1), LowRankPart), "'0' has a part already"),
        (lambda: difference(network(), grown()), "'more.weight' is not in the model before"),
    ],
)
def test_what_it_refuses(call, text):
    with pytest.raises((AdaptError, ValueError), match=text):
        call()
