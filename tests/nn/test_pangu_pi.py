import pytest
import torch
import torch.nn.functional as F

from foveal.nn.pangu_pi import AugmentedShortcut, PanGuPiBlock, SeriesActivation, series_activation


def test_a_hand_computed_sum_of_two_terms():
    x = torch.tensor([[1.0, -2.0]])
    scale, shift = torch.tensor([[2.0, 1.0], [-1.0, 0.5]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    # gelu(2) + gelu(0), gelu(-1) + gelu(-1)
    torch.testing.assert_close(series_activation(x, scale, shift), torch.tensor([[1.954500, -0.317311]]))


def test_one_term_of_scale_one_is_gelu_and_the_module_begins_near_it():
    torch.manual_seed(0)
    x = torch.randn(3, 5, 9)
    assert torch.equal(SeriesActivation(9, terms=1)(x), F.gelu(x))
    begun = SeriesActivation(9, terms=3)
    assert 0 < (begun(x) - F.gelu(x)).abs().max() < 0.2
    assert len({tuple(row.tolist()) for row in begun.scale}) == 3


def plain(block, z):
    """The block with its shortcuts left out, written with torch's own attention."""
    attention = torch.nn.MultiheadAttention(6, 2, batch_first=True).double()
    attention.in_proj_weight, attention.in_proj_bias = block.qkv.weight, block.qkv.bias
    attention.out_proj = block.proj
    y, length = block.norm1(z), z.shape[1]
    mask = torch.ones(length, length).triu(1).bool() if block.causal else None
    z = z + attention(y, y, y, attn_mask=mask, need_weights=False)[0]
    return z + block.fc2(block.act(block.fc1(block.norm2(z))))


@pytest.mark.parametrize("causal", [False, True])
def test_without_shortcuts_it_is_an_ordinary_block(causal):
    torch.manual_seed(0)
    block = PanGuPiBlock(6, 2, terms=0, shortcuts=0, causal=causal).double()
    z = torch.randn(2, 7, 6, dtype=torch.float64)
    torch.testing.assert_close(block(z), plain(block, z), rtol=0, atol=1e-12)


def test_shortcuts_add_up_beside_attention():
    torch.manual_seed(0)
    block = PanGuPiBlock(6, 2, shortcuts=2, reduction=3).double()
    block.fc2.weight.data.zero_()
    block.fc2.bias.data.zero_()
    z = torch.randn(2, 7, 6, dtype=torch.float64)
    y = block.norm1(z)
    added = sum(F.gelu(y @ s.down.weight.T) @ s.up.weight.T for s in block.shortcuts)
    torch.testing.assert_close(block(z), plain(block, z) + added, rtol=0, atol=1e-12)


def test_a_shortcut_bends_each_token_by_itself():
    torch.manual_seed(0)
    shortcut, z = AugmentedShortcut(8, reduction=4), torch.randn(1, 5, 8)
    other = z.clone()
    other[:, 2] += 1
    same = (shortcut(z) == shortcut(other)).all(-1)[0]
    assert same.tolist() == [True, True, False, True, True]
    assert sum(p.numel() for p in shortcut.parameters()) == 2 * 8 * 8 // 4


def test_every_part_learns():
    torch.manual_seed(0)
    block = PanGuPiBlock(8, 2, shortcuts=2, reduction=4)
    block(torch.randn(2, 5, 8)).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in block.parameters())


def test_wrong_sizes_raise():
    x, two = torch.zeros(1, 3), torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"must be \(terms, 3\) for these features, got \(2, 3\) and \(1, 3\)"):
        series_activation(x, two, two[:1])
    with pytest.raises(ValueError, match=r"must be \(terms, 3\) for these features, got \(3,\) and \(3,\)"):
        series_activation(x, two[0], two[0])
    with pytest.raises(ValueError, match="terms must be at least 1, got 0; 1 is plain GELU"):
        SeriesActivation(8, terms=0)
    with pytest.raises(ValueError, match="reduction must be in 1…8 for 8 channels, got 32"):
        AugmentedShortcut(8)
