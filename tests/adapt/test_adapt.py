"""The verb on networks of a few numbers: what it learns, chooses, leaves alone and refuses."""

from importlib import import_module

import pytest
import torch
from torch import nn

import foveal
from foveal.adapt import AdaptError
from foveal.adapt.adapt import AUTO, score
from foveal.adapt.methods import Pictures, adapter, statistics
from foveal.adapt.table import KINDS, METHODS
from foveal.adapt.tune import batches_of, classifier, norm_layers, renew_statistics_, tune, with_classes_

pytestmark = pytest.mark.dear("the first optimiser of a process loads half of torch")


def network(*, norm=True):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 12), nn.BatchNorm1d(12) if norm else nn.Identity(), nn.ReLU(), nn.Linear(12, 2)
    ).eval()


def task(count=120):
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(1))
    return x, (x[:, 0] + x[:, 1] > 0).long()


@pytest.mark.parametrize("method", ["head", "norm", "bias", "lora", "full"])
def test_labelled_methods_learn_and_leave_the_model_alone(method):
    model, (x, y) = network(), task()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = foveal.adapt(model, x, y, method=method, steps=300 if method == "full" else 60)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert found.method == method
    none, tried = found.tried
    assert tried.accuracy > none.accuracy + 10
    assert tried.bytes == found.delta.bytes > 0
    changed = {
        "head": {"3.weight", "3.bias"},
        "norm": {"3.weight", "3.bias", "1.weight", "1.bias"},
        "bias": {"3.weight", "3.bias", "0.bias", "1.bias"},
        "lora": {"3.weight", "3.bias", "0.weight"},
    }
    assert method == "full" or set(found.delta.changes) == changed[method]
    assert method != "full" or "1.running_mean" in found.delta.changes


def test_auto_keeps_the_best_and_equal_seeds_agree():
    model, (x, y) = network(), task()
    said = []
    found, again = (foveal.adapt(model, x, y, steps=20, tell=said.append) for _ in range(2))
    assert [item.method for item in found.tried] == ["none", *AUTO[True]]
    best = max(item.accuracy for item in found.tried)
    assert next(item for item in found.tried if item.method == found.method).accuracy == best
    assert said[0].startswith("none: 0.0 kB, ")
    assert [item.accuracy for item in found.tried] == [item.accuracy for item in again.tried]


def test_a_model_in_training_stays_in_training():
    model, (x, y) = network().train(), task()
    foveal.adapt(model, x, y, method="head", steps=2)
    assert model.training
    assert model[1].num_batches_tracked == 0


def test_auto_keeps_nothing_if_nothing_is_better():
    x, _ = task()
    model = network()
    y = model(x).argmax(1)
    found = foveal.adapt(model, x, y, steps=1, held=(x, y))
    assert (found.method, found.delta.changes) == ("none", {})
    assert found.tried[0].accuracy == 100


def test_what_does_not_suit_a_model_is_passed_over():
    model, (x, y) = network(norm=False), task()
    with pytest.raises(AdaptError, match="Sequential has no batch norm"):
        foveal.adapt(model, x, method="statistics")
    found = foveal.adapt(model, x)  # rpl finds no norm
    assert (found.method, found.tried[1].failed[:10]) == ("none", "Sequential")
    assert str(found.tried[1]).startswith("rpl: Sequential has no norm")
    assert foveal.adapt(model, x, y, method="norm", steps=1).method == "norm"  # the head learns


def test_new_classes_need_labels_and_get_a_head():
    model, (x, y) = network(), task()
    three = y + (x[:, 2] > 1).long()
    found = foveal.adapt(model, x, three, method="head", num_classes=3, steps=50)
    assert found.tried[0].accuracy is None
    found.delta.fold_(model)
    assert model(x).shape == (120, 3)
    assert score(model, x, three) > 50


def test_statistics_are_those_of_the_pictures():
    model, (x, _) = network(), task(600)
    shifted = 3 * x + 2
    delta = statistics(model, Pictures(shifted))
    assert set(delta.changes) == {"1.running_mean", "1.running_var"}
    delta.fold_(model)
    seen = model[0](shifted)
    torch.testing.assert_close(model[1].running_mean, seen.mean(0), rtol=0.1, atol=0.1)
    torch.testing.assert_close(model[1].running_var, seen.var(0), rtol=0.2, atol=0.1)


def test_renewed_statistics_are_a_plain_mean_and_keep_the_rest():
    model, (x, _) = network(), task(10)
    former = model[1].num_batches_tracked.clone(), model[1].momentum
    assert renew_statistics_(model, x, batch=3) == 1  # the last batch has one row and is left out
    torch.testing.assert_close(model[1].running_mean, model[0](x[:9]).view(3, 3, 12).mean((0, 1)))
    assert (model[1].num_batches_tracked, model[1].momentum) == former
    assert not model[1].training


def test_batches_depend_on_their_step():
    x, y = task()
    batches = batches_of(x, y, batch=7, flip=True, seed=3)
    first, again, other = batches(0), batches(0), batches(1)
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])
    flipped = sum(bool((x == row.flip(-1)).all(1).any()) for row in first[0])
    assert 0 < flipped < 7


def test_only_what_is_named_is_trained():
    model, (x, y) = network(), task()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tune(model, batches_of(x, y), [model[0].bias], steps=2, lr=1e-2)
    assert [n for n, t in model.state_dict().items() if not torch.equal(t, before[n])] == ["0.bias"]


def test_which_layers_are_what():
    model = network()
    assert list(norm_layers(model)) == ["1"]
    assert classifier(model)[0] == "3"
    assert with_classes_(model, 2)[3].weight.abs().sum() > 0  # as many classes: the head stays
    assert with_classes_(model, 5)[3].weight.shape == (5, 12)


def test_every_name_of_the_table_is_there():
    assert all(callable(adapter(name)) for name in METHODS)
    assert {name for choice in AUTO.values() for name in choice} <= set(METHODS)
    for kind, where in KINDS.items():
        home, _, word = where.partition(":")
        assert getattr(import_module(home), word).kind == kind


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: foveal.adapt(network(), *task(), method="magic"),
            "method must be auto or one of head, norm, .*'magic'",
        ),
        (lambda: foveal.adapt(network(), torch.zeros(0, 4)), "no pictures to adapt to"),
        (lambda: foveal.adapt(network(), task()[0], torch.zeros(3).long()), "as many as inputs, got 3 for 120"),
        (lambda: foveal.adapt(network(), *task(4)), "takes at least 5, got 4"),
        (lambda: foveal.adapt(network(), task()[0], num_classes=3), "3 classes are new to the model"),
        (lambda: foveal.adapt(network(), task()[0], method="lora"), "lora learns from labels, got pictures without"),
        (
            lambda: foveal.adapt(network(), task()[0], task()[1] + 1, method="head"),
            "labels must be below 2, the number of classes, got 2; give num_classes",
        ),
        (lambda: tune(network(), None, [], steps=1, lr=1), "no parameter of Sequential is to learn"),
        (lambda: classifier(nn.ReLU()), "ReLU has no linear layer to be its head"),
        (lambda: with_classes_(network(), 1), "num_classes must be at least 2, got 1"),
    ],
)
def test_what_it_refuses(call, text):
    with pytest.raises(AdaptError, match=text):
        call()
