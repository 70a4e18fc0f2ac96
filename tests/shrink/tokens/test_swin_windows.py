import pytest
import torch
from timm.models.swin_transformer import SwinTransformerBlock, window_partition
from torch import nn

from foveal.shrink.tokens.swin_windows import on_windows, places, window_norms


def blockwise(block, x, wanted):
    """The stock block on the whole map; only chosen windows take its output."""
    y = block(x)
    height, width = x.shape[1:3]
    shift = block.shift_size
    out = x.clone()
    rolled_in, rolled_out = (v.roll((-shift[0], -shift[1]), (1, 2)) for v in (y, out))
    for b, numbers in enumerate(wanted):
        across = -(-width // block.window_size[1])
        for number in numbers:
            i, j = (number // across) * block.window_size[0], (number % across) * block.window_size[1]
            cut = slice(i, min(i + block.window_size[0], height)), slice(j, min(j + block.window_size[1], width))
            rolled_out[b][cut] = rolled_in[b][cut]
    return rolled_out.roll(shift, (1, 2))


@pytest.mark.parametrize("shift", [0, 1], ids=["plain", "shifted"])
@pytest.mark.parametrize(
    ("size", "window", "dynamic"),
    [((8, 12), 2, False), ((9, 11), 4, False), ((8, 12), 4, True), ((7, 9), 3, True)],
    ids=["divided", "padded", "dynamic", "odd"],
)
def test_chosen_windows_equal_the_stock_block_and_others_stay(shift, size, window, dynamic):
    torch.manual_seed(0)
    words = {"window_size": window, "shift_size": shift, "dynamic_mask": dynamic}
    block, x = SwinTransformerBlock(8, size, num_heads=2, **words).eval(), torch.randn(2, *size, 8)
    nn.init.normal_(block.norm1.bias)  # so that normalised padding is not zero by chance
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    wanted = [[1, 3, 4], [0, 2, 5]]
    numbers = places(*x.shape[1:3], block.window_size, block.shift_size)
    ours, theirs = on_windows(block, a, numbers, torch.tensor(wanted)), blockwise(block, b, wanted)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    weight = torch.rand_like(ours)
    grads = [torch.autograd.grad((y * weight).sum(), (z, block.attn.qkv.weight)) for y, z in ((ours, a), (theirs, b))]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)
    assert not torch.equal(ours, x)


def test_places_are_the_windows_of_the_rolled_map():
    numbers = places(4, 6, (2, 3), (1, 1))
    rolled = torch.arange(24).view(1, 4, 6, 1).roll((-1, -1), (1, 2))
    assert torch.equal(numbers, window_partition(rolled, (2, 3)).flatten(1))
    padded = places(3, 4, (2, 3), (0, 0))
    assert sorted(padded.flatten().tolist()) == list(range(24))
    assert padded[0].tolist() == [0, 1, 2, 4, 5, 6]
    assert (padded[3] >= 12).sum() == 5


def test_the_score_is_the_norm_of_a_window():
    x, numbers = torch.rand(2, 12, 5), places(3, 4, (2, 3), (0, 0))
    norms = window_norms(x, numbers)
    assert norms.shape == (2, 4)
    torch.testing.assert_close(norms[1, 0], x[1, [0, 1, 2, 4, 5, 6]].norm())
    torch.testing.assert_close(norms[0, 3], x[0, 11].norm())
