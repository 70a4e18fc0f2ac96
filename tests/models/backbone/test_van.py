import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveal.evidence.models.backbone.van import windows
from foveal.models.backbone.van import LKA, VAN, LargeKernelAttention, from_authors, lka_kernel, stand_in, van_b0
from foveal.shrink.swap.operators import operator

SMALL = {"dims": (6, 8, 10), "depths": (1, 2, 1), "mlp_ratios": (2, 3, 2), "num_classes": 5}


def by_taps(x, weight, dilation):
    """A depthwise convolution, tap by tap."""
    size = weight.shape[-1]
    reach = dilation * (size // 2)
    padded, out = F.pad(x, (reach,) * 4), torch.zeros_like(x)
    for row in range(size):
        for column in range(size):
            part = padded[..., row * dilation :, column * dilation :][..., : x.shape[-2], : x.shape[-1]]
            out = out + weight[:, 0, row, column, None, None] * part
    return out


@pytest.mark.parametrize("size", [(1, 1), (5, 8), (25, 7)])
def test_the_gate_is_the_formula(size):
    torch.manual_seed(0)
    layer = LKA(3).double()
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    small = by_taps(x, layer.small.weight, 1) + layer.small.bias[:, None, None]
    large = by_taps(small, layer.large.weight, 3) + layer.large.bias[:, None, None]
    gate = torch.einsum("oi,bihw->bohw", layer.pointwise.weight[:, :, 0, 0], large)
    want = x * (gate + layer.pointwise.bias[:, None, None])
    out = layer(x)
    torch.testing.assert_close(out, want)
    inputs = [x, *layer.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad(out.square().sum(), inputs), torch.autograd.grad(want.square().sum(), inputs), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_one_kernel_is_the_two():
    torch.manual_seed(0)
    small, large = torch.randn(4, 1, 5, 5), torch.randn(4, 1, 7, 7)
    kernel = lka_kernel(small, large)
    assert kernel.shape == (4, 1, 23, 23)
    x = torch.randn(1, 4, 27, 24)
    want = torch.conv2d(torch.conv2d(x, small, groups=4), large, dilation=3, groups=4)
    torch.testing.assert_close(torch.conv2d(x, kernel, groups=4), want, rtol=1e-4, atol=1e-4)
    # a unit small kernel leaves the dilated one, with gaps
    unit = nn.init.dirac_(torch.empty(4, 1, 5, 5), groups=4)
    assert torch.equal(lka_kernel(unit, large)[..., 2:-2:3, 2:-2:3], large)
    assert int((lka_kernel(unit, large) != 0).sum()) == large.numel()


def test_a_gate_of_one_leaves_the_map():
    layer, x = LKA(4), torch.randn(1, 4, 6, 5)
    nn.init.zeros_(layer.pointwise.weight)
    nn.init.ones_(layer.pointwise.bias)
    assert torch.equal(layer(x), x)


def test_the_attention_passes_on_its_input():
    layer, x = LargeKernelAttention(4), torch.randn(1, 4, 6, 5)
    nn.init.zeros_(layer.proj2.weight)
    nn.init.zeros_(layer.proj2.bias)
    assert torch.equal(layer(x), x)


def test_maps_halve_and_are_normalised():
    torch.manual_seed(0)
    model = VAN(**SMALL).eval()
    last, maps = model.forward_intermediates(torch.randn(2, 3, 50, 64))
    assert [tuple(one.shape[1:]) for one in maps] == [(6, 13, 16), (8, 7, 8), (10, 4, 4)]
    torch.testing.assert_close(maps[0].mean(1), torch.zeros(2, 13, 16), rtol=0, atol=1e-5)
    assert last.shape == maps[-1].shape
    assert len(model.group_matcher()["blocks"]) == 4 + 3


def test_names_of_the_authors():
    model = van_b0(dims=(4, 4, 4, 4), depths=(1, 1, 1, 1), mlp_ratios=(1, 1, 1, 1), num_classes=2)
    block = ["norm1.weight", "layer_scale_2", "attn.proj_1.bias", "mlp.dwconv.dwconv.weight", "mlp.fc2.weight"]
    block += [f"attn.spatial_gating_unit.{name}.weight" for name in ("conv0", "conv_spatial", "conv1")]
    theirs = [f"block{i}.0.{name}" for i in range(1, 5) for name in block]
    theirs += [f"{name}{i}" for i in range(1, 5) for name in ("patch_embed%d.proj.weight", "norm%d.bias")]
    theirs = [name[:-1] % int(name[-1]) if "%" in name else name for name in theirs]
    assert set(from_authors(dict.fromkeys([*theirs, "head.weight"]))) <= set(model.state_dict())


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_a_stand_in_starts_equal_on_flat_pictures(groups):
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 6, (5, 3), padding=(2, 2), dilation=(1, 2), groups=groups)
    x = torch.randn(2, 6, 1, 1).expand(-1, -1, 9, 9)
    torch.testing.assert_close(stand_in(layer, (1, 6, 9, 9))(x)[..., 2:-2, 2:-2], layer(x)[..., 2:-2, 2:-2])


def test_swap_knows_it():
    assert operator("lka").of == "conv"
    found = operator("lka").stand_in(nn.Conv2d(3, 4, 3, padding=1), (1, 3, 8, 8))
    assert isinstance(found[0], LKA)


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (nn.Linear(4, 4), "lka stands in for a convolution, got Linear"),
        (nn.Conv2d(4, 4, 3, stride=2, padding=1), "needs stride 1 and full padding"),
        (nn.Conv2d(4, 4, 3), "needs stride 1 and full padding"),
        (nn.Conv2d(4, 4, 3, padding=1, dilation=2), "needs stride 1 and full padding"),
    ],
)
def test_layers_that_it_cannot_replace(layer, text):
    with pytest.raises(ValueError, match=text):
        stand_in(layer, (1, 4, 8, 8))


def test_stages_of_unequal_number_are_refused():
    with pytest.raises(ValueError, match="dims, depths and mlp_ratios must have the same length, got 2, 1 and 4"):
        VAN((4, 8), (1,), mlp_ratios=(8, 8, 4, 4))


def test_every_second_block_of_the_twin_shifts_its_windows():
    network = windows(24)
    shifts = [block.mixer.attention.shift for stage in (network.stage1, network.stage2) for block in stage]
    assert shifts == [(0, 0), (2, 2)] * 2
