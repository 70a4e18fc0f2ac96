import pytest
import timm
import torch
import torch.nn.functional as F

from foveal.evidence.models.backbone.mambaout import having, without
from foveal.models.backbone.mambaout import (
    GatedCNNBlock,
    StateSpace,
    mambaout_femto,
    use_plain_blocks_,
)
from foveal.ops import selective_scan

SMALL = {"dims": (8, 16), "depths": (1, 2), "num_classes": 5}


def test_it_is_timms_network():
    model = mambaout_femto(in_channels=1, drop_path=0.1, **SMALL)
    assert type(model) is type(timm.create_model("mambaout_femto"))
    assert model(torch.rand(2, 1, 32, 24)).shape == (2, 5)


@pytest.mark.parametrize("arguments", [{}, {"expansion_ratio": 3.0, "conv_ratio": 1.25, "kernel_size": 5}])
def test_plain_blocks_give_timms_logits(arguments):
    torch.manual_seed(0)
    sizes = {"dims": (8, 16), "depths": (1, 2), "num_classes": 5}
    model, x = timm.create_model("mambaout_femto", **sizes, **arguments).eval(), torch.randn(2, 3, 37, 50)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn(value.shape) * 0.1)
    before = model(x)
    assert use_plain_blocks_(model) is model
    assert all(type(block) is GatedCNNBlock for stage in model.stages for block in stage.blocks)
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-6)
    for name in ("conv.weight", "fc1.weight", "norm.bias"):
        value = dict(model.stages[1].blocks[1].named_parameters())[name]
        kept = value.data.clone()
        value.data.add_(0.3)
        assert not torch.allclose(model(x), before, rtol=1e-3, atol=1e-3)
        value.data.copy_(kept)


def test_the_gate_stands_over_all_channels_and_the_convolution_over_some():
    block = GatedCNNBlock(6, conv_ratio=0.5).eval()
    assert block.split == (16, 13, 3)
    x = torch.randn(1, 5, 4, 6)
    g, i, c = F.linear(block.norm(x), block.fc1.weight, block.fc1.bias).split(block.split, -1)
    seen = F.conv2d(c.permute(0, 3, 1, 2), block.conv.weight, block.conv.bias, padding=3, groups=3)
    want = x + block.fc2(F.gelu(g) * torch.cat([i, seen.permute(0, 2, 3, 1)], -1))
    torch.testing.assert_close(block(x), want)


def test_a_state_space_reads_rows_both_ways():
    torch.manual_seed(0)
    space = StateSpace(5, 3).double()
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(space(x.flip(2, 3)), space(x).flip(2, 3))

    def one_way(rows):
        dt, keys, queries = space.x_proj(rows.transpose(1, 2)).split(space.split, -1)
        tensors = (space.dt_proj(dt), keys, queries)
        dt, keys, queries = (t.transpose(1, 2) for t in tensors)
        return selective_scan(
            rows, dt, -space.A_log.exp(), keys, queries, space.D, delta_softplus=True, backend="reference"
        )

    rows = x.flatten(2)
    want = (one_way(rows) + one_way(rows.flip(2)).flip(2)) / 2
    torch.testing.assert_close(space(x).flatten(2), want)


def test_the_two_sides_of_the_comparison_are_equally_large():
    counts = [sum(p.numel() for p in build().parameters()) for build in (without, having)]
    assert counts[0] == pytest.approx(counts[1], rel=2e-3)
    kinds = [sum(isinstance(m, StateSpace) for m in build().modules()) for build in (without, having)]
    assert kinds == [0, 5]


def test_a_convolution_over_more_channels_than_there_are_is_refused():
    with pytest.raises(ValueError, match=r"conv_ratio must be at most the expansion, got 2\.0 and 1\.5; lower it"):
        GatedCNNBlock(8, expansion=1.5, conv_ratio=2.0)
