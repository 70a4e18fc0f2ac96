from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveal.evidence.train.adadagrad import WAYS, network
from foveal.train.adadagrad import (
    AdAdaGrad,
    AdaGradNorm,
    coordinate_test,
    inner_product_test,
    next_batch,
    norm_test,
    per_sample_gradients,
)


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def flat(gradients):
    return torch.cat([g.flatten() for g in gradients])


def test_gradients_of_each_picture():
    torch.manual_seed(0)
    model, x, labels = network(), drawn(5, 3, 9, 7), torch.arange(5)
    model[0].weight.requires_grad_(requires_grad=False)
    found = per_sample_gradients(model, F.cross_entropy, x, labels)
    trained = [p for p in model.parameters() if p.requires_grad]
    for i, row in enumerate(found):
        loss = F.cross_entropy(model(x[i : i + 1]), labels[i : i + 1])
        torch.testing.assert_close(row, flat(torch.autograd.grad(loss, trained)), rtol=1e-4, atol=1e-6)
    whole = flat(torch.autograd.grad(F.cross_entropy(model(x), labels), trained))
    torch.testing.assert_close(found.mean(0), whole, rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for p in model.parameters())


def test_the_tests_by_hand():
    gradients = torch.tensor([[1.0, 2.0], [3.0, 2.0], [2.0, 5.0]])
    g, variance = gradients.mean(0), gradients.var(0)
    assert g.tolist() == [2, 3]
    assert variance.tolist() == [1, 3]
    assert norm_test(variance, g, eta=0.5) == pytest.approx(4 / (0.25 * 13))
    assert coordinate_test(variance, g, eta=0.5) == pytest.approx(max(1 / (0.25 * 4), 3 / (0.25 * 9)))
    # ⟨g_i, g⟩ are 8, 12 and 19
    assert inner_product_test(gradients, g, eta=0.5) == pytest.approx(31 / (0.25 * 169))


def test_the_smallest_batch_passes_and_no_smaller_one():
    gradients, eta = drawn(40, 6) + 0.5, 0.4
    variance, g = gradients.var(0), gradients.mean(0)
    batch = next_batch(1, norm_test(variance, g, eta=eta), largest=10**6)
    assert variance.sum() / batch <= eta**2 * g.square().sum() < variance.sum() / (batch - 1)
    every = next_batch(1, coordinate_test(variance, g, eta=eta), largest=10**6)
    assert (variance / every <= (eta * g) ** 2).all()
    assert not (variance / (every - 1) <= (eta * g) ** 2).all()
    assert inner_product_test(gradients, g, eta=eta) < norm_test(variance, g, eta=eta) < every


def test_no_noise_and_no_gradient():
    zeros, ones = torch.zeros(2), torch.ones(2)
    assert norm_test(zeros, zeros, eta=0.5) == coordinate_test(zeros, zeros, eta=0.5) == 0
    assert norm_test(ones, zeros, eta=0.5) == coordinate_test(ones, zeros, eta=0.5) == float("inf")
    assert inner_product_test(torch.ones(3, 2), ones, eta=0.5) == 0


@pytest.mark.parametrize(
    ("needed", "batch"), [(0, 32), (32, 32), (32.1, 40), (47, 48), (90, 96), (99, 100), (float("inf"), 100)]
)
def test_batches_only_grow(needed, batch):
    assert next_batch(32, needed, largest=100, multiple=8) == batch


def test_adagrad_norm_by_hand():
    weight = nn.Parameter(torch.zeros(2))
    optimizer = AdaGradNorm([weight, nn.Parameter(torch.zeros(1))], 0.5, start=11.0)
    weight.grad = torch.tensor([3.0, 4.0])
    optimizer.step()
    torch.testing.assert_close(weight.detach(), -0.5 * torch.tensor([3.0, 4.0]) / 6)
    weight.grad = torch.tensor([0.0, 8.0])
    optimizer.step()
    torch.testing.assert_close(weight.detach(), -0.5 * torch.tensor([0.5, 4 / 6 + 0.8]))


def test_one_weight_makes_it_adagrad():
    ours, theirs = (nn.Parameter(torch.ones(1)) for _ in range(2))
    steps = AdaGradNorm([ours], 0.1), torch.optim.Adagrad([theirs], 0.1, eps=0)
    for gradient in (0.3, -2.0, 0.7):
        ours.grad, theirs.grad = torch.tensor([gradient]), torch.tensor([gradient])
        for optimizer in steps:
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


def test_without_a_gradient_nothing_moves():
    weight = nn.Parameter(torch.ones(2))
    optimizer = AdaGradNorm([weight])
    optimizer.step()
    weight.grad = torch.zeros(2)
    optimizer.step()
    assert weight.eq(1).all()


def prepared(**words):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    optimizer = torch.optim.Adagrad(model.parameters(), 0.1)
    return model, AdAdaGrad(model, F.mse_loss, optimizer, batch=8, parts=4, **words)


def test_at_its_largest_it_is_adagrad():
    model, ours = prepared(largest=8)
    plain, _ = prepared(largest=8)
    optimizer, x, y = torch.optim.Adagrad(plain.parameters(), 0.1), drawn(8, 3), drawn(8, 2, seed=1)
    for _ in range(3):
        wanted = F.mse_loss(plain(x), y)
        optimizer.zero_grad()
        wanted.backward()
        optimizer.step()
        torch.testing.assert_close(ours.step(x, y), wanted.detach())
    torch.testing.assert_close(list(model.parameters()), list(plain.parameters()))
    assert ours.batch == 8


@pytest.mark.parametrize("samples", [0, 5, 8])
def test_the_next_batch_is_that_of_the_statistic(samples):
    model, ours = prepared(largest=4000, samples=samples)
    x, y = drawn(8, 3), drawn(8, 2, seed=1)
    gradients = per_sample_gradients(model, F.mse_loss, x, y)
    variance = gradients[:samples].var(0) if samples else 2 * gradients.unflatten(0, (4, 2)).mean(1).var(0)
    needed = norm_test(variance, gradients.mean(0), eta=0.5)
    assert needed > 8
    ours.step(x, y)
    assert ours.batch == next_batch(8, needed, largest=4000, multiple=4)


def test_tests_come_every_few_steps():
    _, ours = prepared(largest=4000, every=3, eta=0.01)
    batches = []
    for _ in range(4):
        batches.append(ours.batch)
        ours.step(drawn(ours.batch, 3), drawn(ours.batch, 2, seed=1))
    assert batches[0] < batches[1] == batches[2] == batches[3]


def test_the_ways_are_fixed_and_growing():
    assert WAYS == {"small": (32, 32), "growing": (32, 512), "large": (512, 512)}


MULTIPLES = "batch and largest must be ascending multiples of parts ≥ 2, got "
POSITIVE = "eta and every must be above 0 and samples 0 or at least 2, got "


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ({"parts": 1}, f"{MULTIPLES}32, 512 and 1"),
        ({"batch": 30}, f"{MULTIPLES}30, 512 and 8"),
        ({"batch": 0}, f"{MULTIPLES}0, 512 and 8"),
        ({"largest": 100}, f"{MULTIPLES}32, 100 and 8"),
        ({"largest": 16}, f"{MULTIPLES}32, 16 and 8"),
        ({"eta": 0}, f"{POSITIVE}0, 1 and 0"),
        ({"every": 0}, f"{POSITIVE}0.5, 0 and 0"),
        ({"samples": 1}, f"{POSITIVE}0.5, 1 and 1"),
        ({"samples": -2}, f"{POSITIVE}0.5, 1 and -2"),
    ],
)
def test_what_it_refuses(words, text):
    model = nn.Linear(2, 2)
    make = partial(AdAdaGrad, model, F.mse_loss, AdaGradNorm(model.parameters()))
    with pytest.raises(ValueError, match=text):
        make(**words)


def test_other_batches_and_rates():
    _, ours = prepared(largest=8)
    with pytest.raises(ValueError, match="this step takes batch = 8 pictures, got 7"):
        ours.step(drawn(7, 3), drawn(7, 2))
    for lr, start in ((0, 0), (0.1, -1)):
        with pytest.raises(ValueError, match=f"lr must be above 0 and start at least 0, got {lr} and {start}"):
            AdaGradNorm([nn.Parameter(torch.ones(1))], lr, start)
