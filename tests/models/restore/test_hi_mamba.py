import pytest
import torch

from foveal.evidence.models.restore import hi_mamba as evidence
from foveal.models.restore.hi_mamba import DIRECTIONS, DirectedScan, HiMamba, HiMambaBlock, HiMambaGroup, hi_mamba_small


def test_four_directions_are_summed():
    torch.manual_seed(0)
    every, x = DirectedScan(4, tuple(range(DIRECTIONS)), state=3), torch.randn(2, 4, 5, 6)
    parts = []
    for direction in range(DIRECTIONS):
        one = DirectedScan(4, (direction,), state=3)
        rows = slice(direction * 4, direction * 4 + 4)
        with torch.no_grad():
            for name in ("x_proj", "dt_proj"):
                getattr(one, name).copy_(getattr(every, name)[direction : direction + 1])
            for name in ("dt_bias", "A_log", "D"):
                getattr(one, name).copy_(getattr(every, name)[rows])
        parts.append(one(x))
    torch.testing.assert_close(every(x), sum(parts))


@pytest.mark.parametrize(("direction", "seen"), [(0, (0, 0)), (1, (0, 0)), (2, (6, 4)), (3, (6, 4))])
def test_a_scan_sees_only_what_came_before(direction, seen):
    torch.manual_seed(0)
    scan, x = DirectedScan(3, (direction,), state=2), torch.randn(1, 3, 7, 5, requires_grad=True)
    scan(x)[:, :, 3, 2].sum().backward()
    reached = x.grad[0].abs().sum(0) > 0
    line = reached.mT.flatten() if direction % 2 else reached.flatten()
    middle = 2 * 7 + 3 if direction % 2 else 3 * 5 + 2
    before = torch.arange(len(line)) <= middle if direction < 2 else torch.arange(len(line)) >= middle
    assert torch.equal(line, before)
    assert reached[seen]


def test_directions_take_turns():
    group = HiMambaGroup(4, 6, state=2)
    assert [block.scans.local_scan.directions for block in group.blocks] == [[0], [1], [2], [3], [0], [1]]
    assert [block.scans.region_scan.directions for block in group.blocks] == [[0], [1], [2], [3], [0], [1]]
    four = HiMambaGroup(4, 2, state=2, four=True)
    assert [block.scans.local_scan.directions for block in four.blocks] == [[0, 1, 2, 3]] * 2
    assert not any("region_scan" in name for name, _ in four.named_modules())


@pytest.mark.parametrize(("scale", "size"), [(2, (1, 1)), (3, (7, 13)), (4, (8, 4))])
def test_any_size(scale, size):
    network = HiMamba(scale, dim=8, groups=1, depth=1, state=2).eval()
    with torch.no_grad():
        out = network(torch.rand(1, 3, *size))
    assert out.shape == (1, 3, size[0] * scale, size[1] * scale)


def test_regions_change_the_whole_map():
    torch.manual_seed(0)
    block = HiMambaBlock(4, (0,), state=2, region=4).eval()
    x = torch.rand(1, 4, 8, 12)
    with torch.no_grad():
        before = block(x)
        block.scans.region_norm.bias += 1
        assert (block(x) - before).abs().amin((0, 1)).gt(0).all()


def test_the_small_pair_has_one_width():
    one, four = hi_mamba_small(in_channels=1), evidence.four_small(in_channels=1)
    assert one.head.weight.shape == four.head.weight.shape
    counts = [sum(p.numel() for p in network.parameters()) for network in (one, four)]
    assert counts[0] < counts[1] < 1.1 * counts[0]


@pytest.mark.parametrize("wrong", [{"scale": 0}, {"region": 0}])
def test_nothing_below_one(wrong):
    with pytest.raises(ValueError, match=r"scale and region must be at least 1, got"):
        HiMamba(**wrong)
