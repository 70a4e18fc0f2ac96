import pytest
import torch
from torch import nn

from foveal.evidence.models.backbone.tic import ZOO
from foveal.models.backbone.tic import MSAConv, TiC, msa_conv, msa_conv_reference

SMALL = {"dims": (4, 8), "depths": (2, 5), "num_heads": (2, 4), "kernel_size": 3, "patch_size": 2, "num_classes": 5}


@pytest.mark.parametrize(
    ("size", "kernel", "dilation", "means"),
    [((1, 1), 3, 1, 0), ((5, 3), 5, 1, 0), ((4, 7), 3, 2, 0), ((3, 4), 3, 1, 2)],
)
def test_it_is_masked_attention_pixel_by_pixel(size, kernel, dilation, means):
    torch.manual_seed(0)
    inputs = [torch.randn(2, 2, 3, *size) for _ in range(3)] + [torch.randn(2, kernel**2)]
    inputs += [torch.randn(2, 2, 3, means) for _ in range(2 if means else 0)]
    inputs = [x.double().requires_grad_() for x in inputs]
    pooled = tuple(inputs[4:]) or None
    out, wanted = (f(*inputs[:4], dilation=dilation, pooled=pooled) for f in (msa_conv, msa_conv_reference))
    torch.testing.assert_close(out, wanted)
    gradients = [torch.autograd.grad(y.square().sum(), inputs) for y in (out, wanted)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_window_of_one_pixel_passes_its_value():
    x = torch.randn(3, 1, 2, 4, 5, 6).unbind(0)
    torch.testing.assert_close(msa_conv(*x, torch.randn(2, 1)), x[2])


def test_equal_keys_give_the_mean_of_what_is_inside():
    value = torch.arange(9.0).view(1, 1, 1, 3, 3)
    out = msa_conv(value, torch.zeros_like(value), value, torch.zeros(1, 9))
    assert out[0, 0, 0, 1, 1] == 4
    assert out[0, 0, 0, 0, 0] == 2  # of 0, 1, 3 and 4: what is beyond the border does not take part


def test_as_many_heads_as_channels_leave_channels_apart():
    torch.manual_seed(0)
    layer = MSAConv(4, 4, kernel_size=3)
    with torch.no_grad():
        layer.qkv.weight.copy_(torch.eye(4).repeat(3, 1)[:, :, None, None])
        layer.proj.weight.copy_(torch.eye(4)[:, :, None, None])
    x, y = torch.randn(1, 4, 5, 5), torch.randn(1, 1, 5, 5)
    other = layer(torch.cat([x[:, :3], y], 1))
    assert torch.equal(other[:, :3], layer(x)[:, :3])
    assert not torch.allclose(other[:, 3], layer(x)[:, 3])


def test_a_roll_joins_opposite_borders():
    torch.manual_seed(0)
    layer = MSAConv(4, 2, kernel_size=3)
    for shift, joined in (((0, 0), False), ((2, -2), True)):
        layer.shift = shift
        x = torch.randn(1, 4, 8, 8, requires_grad=True)
        (gradient,) = torch.autograd.grad(layer(x)[..., 0, 0].sum(), x)
        assert bool(gradient[..., 7, 7].abs().sum() > 0) == joined


def test_rolls_come_back():
    torch.manual_seed(0)
    layer = MSAConv(4, 2, kernel_size=3, shift=(2, -1))
    x = torch.randn(1, 4, 6, 7)
    rolled = layer(x)
    layer.shift = (0, 0)
    torch.testing.assert_close(rolled, layer(x.roll((2, -1), (2, 3))).roll((-2, 1), (2, 3)))


def test_pooled_means_reach_the_whole_map():
    torch.manual_seed(0)
    for pool, reached in ((0, 9), (2, 81)):
        x = torch.randn(1, 4, 9, 9, requires_grad=True)
        (gradient,) = torch.autograd.grad(MSAConv(4, 2, kernel_size=3, pool=pool)(x)[..., 4, 4].sum(), x)
        assert (gradient.abs().sum((0, 1)) > 0).sum() == reached


def test_blocks_roll_to_corner_after_corner():
    shifts = [block.attention.shift for block in TiC(**SMALL).stages[1] if hasattr(block, "attention")]
    assert shifts == [(-2, -2), (-2, 2), (2, 2), (2, -2), (-2, -2)]
    still = [m.shift for m in TiC(**SMALL, cyclic=False).modules() if isinstance(m, MSAConv)]
    assert set(still) == {(0, 0)}


def test_maps_halve_at_any_size():
    torch.manual_seed(0)
    model = TiC(**SMALL).eval()
    _, maps = model.forward_intermediates(torch.randn(2, 3, 22, 34))
    assert [tuple(one.shape[1:]) for one in maps] == [(4, 11, 17), (8, 5, 8)]
    assert model(torch.randn(1, 3, 16, 16)).shape == (1, 5)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"depths": (1,)}, "dims, depths and num_heads must have the same length, got 2, 1 and 2"),
        ({"num_heads": (2, 3)}, "dim must be a multiple of num_heads = 3, got 8"),
        ({"kernel_size": 4}, "kernel_size must be odd, got 4; take 5"),
    ],
)
def test_sizes(options, text):
    with pytest.raises(ValueError, match=text):
        TiC(**{**SMALL, **options})


def test_the_rival_is_a_plain_transformer_of_as_many_blocks():
    ours, theirs = ZOO.ours(), ZOO.rivals[0]()
    x = torch.randn(2, 3, 32, 32)
    assert ours(x).shape == theirs(x).shape == (2, 10)
    assert sum(isinstance(module, MSAConv) for module in ours.modules()) == len(theirs.blocks) == 4
    assert not any(isinstance(m, nn.Conv2d) for block in theirs.blocks for m in block.modules())
