import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveal.train.restore.re_iqa import (
    LADDERS,
    Encoder,
    ReIQA,
    Ridge,
    contrast,
    half_swapped,
    overlapping,
    two_scales,
)


def drawn(seed=0):
    return torch.Generator().manual_seed(seed)


def numbered(versions, height, width):
    """Pictures whose pixels are told by their numbers."""
    one = torch.arange(height * width, dtype=torch.float64).view(1, 1, height, width)
    return one.expand(versions, 3, -1, -1)


def test_crops_share_a_tenth_to_three_tenths():
    shares, turned = [], set()
    for seed in range(200):
        a, b = overlapping(numbered(2, 83, 90), 40, drawn(seed))
        assert a.shape == b.shape == (2, 3, 40, 40)
        assert torch.equal(a[0], a[1])
        assert torch.equal(b[0], b[1])  # all versions at the same places
        first, second = set(a[0, 0].flatten().tolist()), set(b[0, 0].flatten().tolist())
        shares.append(len(first & second) / 1600)
        rows, columns = (b[0, 0, 0, 0] // 90 > a[0, 0, 0, 0] // 90), (b[0, 0, 0, 0] % 90 > a[0, 0, 0, 0] % 90)
        turned.add((bool(rows), bool(columns)))
    assert 0.08 < min(shares) < 0.13  # moves are whole pixels
    assert 0.27 < max(shares) < 0.32
    assert len(turned) == 4


def test_half_of_the_versions_exchange_crops():
    a, b = torch.arange(5), torch.arange(5) + 10
    queries, keys = half_swapped(a, b)
    assert queries.tolist() == [10, 11, 12, 3, 4]
    assert keys.tolist() == [0, 1, 2, 13, 14]


def test_the_loss_by_hand():
    query, key = torch.eye(2), torch.eye(2)
    found = contrast(query, key, torch.zeros(0, 2), temperature=0.5)
    assert found.item() == pytest.approx(-math.log(math.exp(2) / (math.exp(2) + 1)))
    longer = contrast(3 * query, 5 * key, torch.tensor([[7.0, 0.0]]), temperature=0.5)
    wanted = (math.log(2 * math.exp(2) + 1) - 2 + math.log(math.exp(2) + 2) - 2) / 2
    assert longer.item() == pytest.approx(wanted)


def test_keys_get_no_gradient():
    query, key, queue = (torch.rand(3, 4, requires_grad=True) for _ in range(3))
    contrast(query, key, queue).backward()
    assert query.grad.abs().sum() > 0
    assert key.grad is None
    assert queue.grad is None


@pytest.fixture
def training():
    torch.manual_seed(0)
    return ReIQA(Encoder((2, 4)), dim=3, queue=5, momentum=0.75)


def test_the_copy_follows_slowly(training):
    x = torch.rand(4, 3, 8, 8, generator=drawn())
    before = training.slow[1][0].weight.clone()
    with torch.no_grad():
        training.head[0].weight.add_(1)
    training(x, x)
    torch.testing.assert_close(training.slow[1][0].weight, before + 0.25)
    assert not any(p.requires_grad for p in training.slow.parameters())
    before = training.slow[1][0].weight.clone()
    training.eval()(x, x)
    assert torch.equal(training.slow[1][0].weight, before)


def test_the_newest_keys_stand_in_the_queue(training):
    x, y = torch.rand(2, 3, 3, 8, 8, generator=drawn())
    training(x, x)
    training(x, y)
    latest = F.normalize(training.slow(y), dim=1)
    torch.testing.assert_close(training.queue[[3, 4, 0]], latest)  # three, then two and the first again
    assert training.place == 1
    kept = training.queue.clone()
    training.eval()(x, x)
    assert torch.equal(training.queue, kept)


def test_without_a_queue(training):
    alone = ReIQA(training.encoder, dim=3, queue=0)
    assert alone(torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)).isfinite()


def test_the_loss_of_a_batch_sees_the_queue_as_it_was(training):
    x = torch.rand(3, 3, 8, 8, generator=drawn())
    queue = training.queue.clone()
    loss = training(x, x.flip(-1))
    query, key = training.head(training.encoder(x)), training.slow(x.flip(-1))
    torch.testing.assert_close(loss, contrast(query, key, queue))


def test_features_of_both_sizes():
    encoder = Encoder((2, 4)).eval()
    x = torch.rand(2, 3, 9, 12)
    half = F.interpolate(x, (5, 6), mode="bicubic", antialias=True)
    torch.testing.assert_close(two_scales(encoder, x), torch.cat([encoder(x), encoder(half)], 1))
    assert encoder.features == 4


def test_ridge_by_hand():
    x = torch.randn(40, 3, generator=drawn(), dtype=torch.float64)
    wanted = x @ torch.tensor([2.0, 0.0, -1.0], dtype=torch.float64) + 5
    torch.testing.assert_close(Ridge(x, wanted, penalty=0.0)(x), wanted)
    assert Ridge(x, wanted, penalty=1e6)(x).std() < 1e-3
    rows = (x - x.mean(0)) / x.std(0)
    weights = nn.functional.pad(rows, (0, 0, 0, 3))
    weights[40:] = (0.3 * 40) ** 0.5 * torch.eye(3, dtype=torch.float64)
    target = torch.cat([wanted - wanted.mean(), torch.zeros(3, dtype=torch.float64)])
    found = torch.linalg.lstsq(weights, target[:, None]).solution[:, 0]
    torch.testing.assert_close(Ridge(x, wanted, penalty=0.3)(x), rows @ found + wanted.mean())


@pytest.mark.parametrize("name", LADDERS)
def test_damages_grow_with_their_strength(name):
    smooth = F.interpolate(torch.rand(1, 3, 6, 6, generator=drawn(1)), (40, 40), mode="bicubic").clamp(0, 1)
    x = (0.8 * smooth + 0.2 * torch.rand(1, 3, 40, 40, generator=drawn(2))).mul(255).round() / 255
    errors = [float((damage(x, drawn()) - x).square().mean()) for damage in LADDERS[name]]
    assert len(errors) == 5
    assert errors[0] > 0
    assert errors == sorted(errors)
    assert all(damage(x, drawn()).min() >= 0 and damage(x, drawn()).max() <= 1 for damage in LADDERS[name])


def test_errors():
    with pytest.raises(ValueError, match="two crops of 40 pixels take sides of at least 80, got 79×90"):
        overlapping(torch.rand(1, 3, 79, 90), 40, drawn())
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\) and queue at least 0, got 1.0 and 2"):
        ReIQA(Encoder((2,)), momentum=1.0, queue=2)
