import copy
from functools import partial

import pytest
import torch
from torch import nn

import foveal
from foveal.adapt import AdaptError
from foveal.adapt.attach import attach_, difference
from foveal.adapt.learned import attached
from foveal.adapt.methods import Pictures
from foveal.adapt.orthogonal_adaptation import (
    OrthogonalPart,
    columns_of,
    cross_products,
    orthogonal_adaptation,
    orthogonal_basis,
)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 3)).eval()


def delta_of(task, rank=3):
    model = network()
    work = copy.deepcopy(model)
    parts = attach_(work, partial(OrthogonalPart, rank=rank, task=task), where=lambda name, _: name == "0")
    nn.init.normal_(parts["0.weight"].up, generator=torch.Generator().manual_seed(task))
    return difference(model, work)


@pytest.mark.parametrize("size", [1, 7, 64])
def test_the_basis_is_orthogonal_and_everybodys(size):
    basis = orthogonal_basis(size)
    torch.testing.assert_close(basis.T @ basis, torch.eye(size), atol=1e-6, rtol=0)
    orthogonal_basis.cache_clear()
    assert torch.equal(orthogonal_basis(size), basis)
    assert size == 1 or not torch.equal(orthogonal_basis(size, seed=1), basis)


def test_numbers_take_all_columns_and_draws_may_share_some():
    taken = torch.cat([columns_of(12, 3, task=task) for task in range(4)])
    assert sorted(taken.tolist()) == list(range(12))
    first, second = (columns_of(12, 6, seed=seed) for seed in (0, 1))
    assert len(set(first.tolist())) == 6
    assert set(first.tolist()) & set(second.tolist())


def test_what_one_task_reads_the_others_leave_alone():
    deltas = [delta_of(task) for task in range(4)]
    assert max(max(cross_products(deltas[i], deltas[j]).values()) for i in range(4) for j in range(i)) < 1e-6
    assert cross_products(deltas[0], deltas[0])["0.weight"] == pytest.approx(1 / 3, abs=1e-6)
    total = deltas[0] + deltas[1] + deltas[2] + deltas[3]
    own = deltas[2].changes["0.weight"]
    x = torch.randn(5, 3) @ own.down  # inputs in the span of the third task's columns
    torch.testing.assert_close(
        x @ total.changes["0.weight"].difference().T, x @ own.difference().T, atol=1e-5, rtol=1e-5
    )
    products = [a.changes["0.weight"].difference() @ deltas[2].changes["0.weight"].difference().T for a in deltas]
    assert [bool(product.abs().max() < 1e-5) for product in products] == [True, True, False, True]


def test_only_the_outer_factor_learns():
    weight = torch.randn(4, 2, 3, 3, dtype=torch.float64)
    part = OrthogonalPart(weight, rank=5, task=1)
    assert torch.equal(part(weight), weight)
    assert [name for name, _ in part.named_parameters()] == ["up"]
    upstream = torch.randn_like(weight)
    (part(weight) * upstream).sum().backward()
    torch.testing.assert_close(part.up.grad, upstream.flatten(1) @ part.down.T)


def test_it_learns_by_its_name():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 12, generator=generator)
    y = (x[:, :4].sum(1) > 0).long()
    model = network()
    found = foveal.adapt(model, x, y, method="orthogonal", steps=2).delta
    assert found.changes["0.weight"].up.abs().sum() > 0
    assert set(found.changes) == {"0.weight", "2.weight", "2.bias"}  # the head is trained as it is
    same, other = (orthogonal_adaptation(model, Pictures(x, y), steps=1, seed=seed) for seed in (0, 1))
    assert torch.equal(same.changes["0.weight"].down, found.changes["0.weight"].down)
    assert not torch.equal(other.changes["0.weight"].down, found.changes["0.weight"].down)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: columns_of(12, 13), "rank must be in 1…12 for 12 inputs, got 13"),
        (lambda: columns_of(12, 5, task=2), r"task must be in 0…1 for columns of its own \(12 inputs, rank 5\), got 2"),
    ],
)
def test_what_it_refuses(call, text):
    with pytest.raises(ValueError, match=text):
        call()


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (None, "mine learns from labels, got pictures without"),
        (torch.tensor([0, 3]), "labels must be below 3, the number of classes, got 3"),
    ],
)
def test_what_parts_do_not_learn_from(labels, text):
    with pytest.raises(AdaptError, match=text):
        attached(network(), Pictures(torch.zeros(2, 12), labels), OrthogonalPart, method="mine", steps=1, lr=0.1)
