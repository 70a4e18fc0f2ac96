import pytest
import torch

from foveal.models.backbone.efficientvmamba import (
    ES2D,
    EfficientVMamba,
    EVSSBlock,
    InvertedResidual,
    _tokens,
    atrous_gather,
    atrous_scatter,
    efficientvmamba_tiny,
)
from foveal.ops.scan2d import gather, routes


def test_as_many_parameters_as_the_authors_network():
    with torch.device("meta"):
        assert sum(p.numel() for p in efficientvmamba_tiny().parameters()) == 6_493_660


@pytest.mark.parametrize("side", [(1, 1), (1, 4), (5, 2), (6, 4), (7, 9)])
def test_there_and_back(side):
    x = torch.randn(2, 3, *side)
    sequences = atrous_gather(x)
    assert sequences.shape == (2, 4, 3, (side[0] + 1) // 2 * ((side[1] + 1) // 2))
    assert torch.equal(atrous_scatter(sequences, *side), x)
    # and the other way, where nothing was completed by zeros
    if side[0] % 2 == side[1] % 2 == 0:
        noise = torch.randn_like(sequences)
        assert torch.equal(atrous_gather(atrous_scatter(noise, *side)), noise)


@pytest.mark.parametrize("side", [(2, 2), (6, 4), (5, 7)])
def test_the_sequences_are_the_atrous_routes(side):
    x = torch.randn(2, 3, *side)
    assert torch.equal(atrous_gather(x), gather(x.flatten(2), routes("atrous", *side)))


def test_each_token_is_scanned_once():
    assert _tokens(6, 10).tolist() == [60]
    assert routes("cross", 6, 10).numel() == 240


def test_a_token_reaches_its_own_subset_only():
    torch.manual_seed(0)
    mixer, x = ES2D(4, state=2), torch.randn(1, 8, 6, 8)
    changed = x.clone()
    changed[..., 2, 3] += 1
    touched = (mixer.scan(changed) - mixer.scan(x)).abs().sum((0, 1)) > 0
    rows, columns = touched.nonzero().T
    assert set((rows % 2).tolist()) == {0}
    assert set((columns % 2).tolist()) == {1}
    # by rows: everything after it
    assert touched[::2, 1::2].flatten().tolist() == [False] * 5 + [True] * 7


def test_stages_scan_first_and_convolve_last():
    network = EfficientVMamba(dim=8, depths=(1, 2, 3, 1), num_classes=5)
    kinds = [[type(m) for m in stage if isinstance(m, (EVSSBlock, InvertedResidual))] for stage in network.stages]
    assert kinds == [[EVSSBlock], [EVSSBlock] * 2, [InvertedResidual] * 3, [InvertedResidual]]


def test_a_block_gates_both_branches_alike():
    torch.manual_seed(0)
    block, x = EVSSBlock(8, state=1).eval(), torch.randn(2, 8, 5, 3)
    normed = block.norm(x)
    expected = x + block.excite(block.mixer(normed)) + block.excite(block.conv(normed))
    torch.testing.assert_close(block(x), expected)
    torch.nn.init.constant_(block.excite.expand.bias, -100)
    torch.testing.assert_close(block(x), x)


@pytest.mark.parametrize("side", [(33, 40), (70, 57)])
def test_any_size(side):
    network = efficientvmamba_tiny(dim=4, depths=(1, 1, 1, 1), state=1, num_classes=3).eval()
    assert network(torch.rand(1, 3, *side)).shape == (1, 3)
