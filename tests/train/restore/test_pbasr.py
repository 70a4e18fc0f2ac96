import copy

import pytest
import torch
from torch import nn

from foveal.train.restore.pbasr import Branches, alike, cross_, fuse, two_streams


def net(seed, dim=4):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Conv2d(3, dim, 3, padding=1), nn.BatchNorm2d(dim), nn.Conv2d(dim, 3, 1))
        nn.init.normal_(model[1].bias)
    return model


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_equal_networks_cross_and_fuse_to_themselves():
    first, second = net(0), net(0)
    assert alike(first, second) == pytest.approx(1, abs=1e-6)
    assert cross_(first, second, decay=0.9) == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(weights(first), weights(net(0)))
    torch.testing.assert_close(weights(fuse(first, second)), weights(first))


def test_crossing_by_the_formula():
    first, second = net(0), net(1)
    before = weights(first), weights(second)
    cosines = [
        (x.flatten() @ y.flatten()) / (x.norm() * y.norm()).clamp_min(1e-8)
        for x, y in zip(first.parameters(), second.parameters(), strict=True)
    ]
    kept = 0.9 + 0.1 * float(torch.stack(cosines).mean().detach())
    assert cross_(first, second, decay=0.9) == pytest.approx(kept, abs=1e-6)
    torch.testing.assert_close(weights(first), kept * before[0] + (1 - kept) * before[1])
    torch.testing.assert_close(weights(second), kept * before[1] + (1 - kept) * before[0])
    torch.testing.assert_close(weights(first) + weights(second), before[0] + before[1])


def test_one_keeps_them_apart():
    first, second = net(0), net(1)
    assert cross_(first, second, decay=1) == 1
    assert torch.equal(weights(first), weights(net(0)))
    assert torch.equal(weights(second), weights(net(1)))


def test_the_fused_network_is_between_both():
    first, second = net(0), net(1)
    second[1].running_mean += 1
    second[1].num_batches_tracked += 3
    fused = fuse(first, second, share=0.25)
    torch.testing.assert_close(weights(fused), 0.75 * weights(first) + 0.25 * weights(second))
    torch.testing.assert_close(fused[1].running_mean, torch.full((4,), 0.25))
    assert fused[1].num_batches_tracked == 0
    assert not fused.training
    for share, end in ((0, first), (1, second)):
        assert torch.equal(weights(fuse(first, second, share=share)), weights(end))
    assert torch.equal(weights(first), weights(net(0))), "the branches stay as they are"


def test_each_branch_learns_from_its_own_stream():
    branches = Branches(net(0), decay=1)
    general, blurred = torch.rand(2, 2, 2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    loss = branches(tuple(general), tuple(blurred))
    torch.testing.assert_close(
        loss, two_streams(branches.general(general[0]), general[1], branches.blurred(blurred[0]), blurred[1])
    )
    grads = torch.autograd.grad(two_streams(branches.general(general[0]), general[1], blurred[0], blurred[0]),
                                list(branches.general.parameters()))  # fmt: skip
    whole = torch.autograd.grad(branches(tuple(general), tuple(blurred)), list(branches.general.parameters()))
    for ours, alone in zip(whole, grads, strict=True):
        torch.testing.assert_close(ours, alone)


def test_weights_cross_in_training_only():
    branches = Branches(net(0), decay=0.5)
    branches.blurred = copy.deepcopy(net(1))
    pair = tuple(torch.rand(2, 1, 3, 4, 4, generator=torch.Generator().manual_seed(1)))
    before = weights(branches.general)
    branches.eval()(pair, pair)
    assert torch.equal(weights(branches.general), before)
    branches.train()(pair, pair)
    assert not torch.equal(weights(branches.general), before)
    torch.testing.assert_close(weights(branches.fused()), (weights(net(0)) + weights(net(1))) / 2)


def test_errors():
    with pytest.raises(ValueError, match=r"must be the same network, got parameters that differ, such as '0.bias'"):
        cross_(net(0), net(0, dim=5))
    with pytest.raises(ValueError, match=r"decay must be in \[0.5, 1\], got 0.4; 0.995 is the paper's"):
        cross_(net(0), net(1), decay=0.4)
    with pytest.raises(ValueError, match=r"share must be in \[0, 1\], got 2; 0.5 is the paper's"):
        fuse(net(0), net(1), share=2)
