import pytest
import torch
import torch.nn.functional as F
from timm.utils.model import reparameterize_model
from torch import nn

from foveal.evidence.models.backbone.lsnet import drawn, repvit, small
from foveal.models.backbone.lsnet import (
    LSConv,
    LSNet,
    dynamic_aggregation,
    dynamic_aggregation_reference,
    from_authors,
    lsnet_t,
    stand_in,
)
from foveal.shrink.swap.operators import operator

SMALL = {"dims": (8, 16, 24), "depths": (1, 2, 2), "key_dim": 3, "num_heads": 2, "patch_size": 4, "num_classes": 5}


@pytest.mark.parametrize(("size", "taps"), [((1, 1), 9), ((5, 8), 9), ((7, 3), 25)])
def test_the_aggregation_is_that_by_unfolding(size, taps):
    torch.manual_seed(0)
    x = torch.randn(2, 12, *size, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 3, taps, *size, dtype=torch.float64, requires_grad=True)
    found, wanted = dynamic_aggregation(x, weights), dynamic_aggregation_reference(x, weights)
    torch.testing.assert_close(found, wanted)
    gradients = [torch.autograd.grad(out.square().sum(), (x, weights)) for out in (found, wanted)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("function", [dynamic_aggregation, dynamic_aggregation_reference])
def test_channel_c_takes_the_kernel_of_group_c_mod_g(function):
    torch.manual_seed(0)
    kernels, x = torch.randn(2, 9), torch.randn(1, 6, 5, 4)
    static = kernels[torch.arange(6) % 2].view(6, 1, 3, 3)
    weights = kernels[None, :, :, None, None].expand(-1, -1, -1, 5, 4)
    torch.testing.assert_close(function(x, weights), F.conv2d(x, static, padding=1, groups=6))


def test_a_pixel_reads_the_kernel_at_its_own_place():
    x, weights = torch.ones(1, 8, 4, 4), torch.zeros(1, 1, 9, 4, 4)
    weights[0, 0, 4, 1, 2] = 3.0
    out = dynamic_aggregation(x, weights)
    assert out[0, 0, 1, 2] == 3
    assert out.sum() == 3 * 8


def test_kernels_see_seven_pixels_a_side():
    torch.manual_seed(0)
    layer = LSConv(8).lkp.eval()
    layer.norm = nn.Identity()  # it standardises over the whole map
    x = torch.randn(1, 8, 15, 15, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x)[..., 7, 7].square().sum(), x)
    seen = (gradient.abs().sum((0, 1)) > 0).nonzero()
    assert seen.min(0).values.tolist() == [4, 4]
    assert seen.max(0).values.tolist() == [10, 10]


def test_kernels_of_a_group_are_standardised_over_the_map():
    torch.manual_seed(0)
    weights = LSConv(16).lkp(torch.randn(2, 16, 6, 5))
    assert weights.shape == (2, 2, 9, 6, 5)
    torch.testing.assert_close(weights.mean((2, 3, 4)), torch.zeros(2, 2), rtol=0, atol=1e-6)


def test_blocks_take_turns_and_the_last_stage_attends():
    model = LSNet(**SMALL)
    kinds = [[type(m.mixer).__name__ for m in stage if hasattr(m, "mixer")] for stage in model.stages]
    assert kinds == [["RepVggDw"], ["RepVggDw", "LSConv"], ["RepVggDw", "_Attention"]]
    excited = [[not isinstance(m.se, nn.Identity) for m in stage if hasattr(m, "se")] for stage in model.stages]
    assert excited == [[True], [True, False], [True, False]]


def test_maps_halve():
    torch.manual_seed(0)
    last, maps = LSNet(**SMALL).eval().forward_intermediates(torch.randn(2, 3, 33, 64))
    assert [tuple(one.shape[1:]) for one in maps] == [(8, 9, 16), (16, 5, 8), (24, 3, 4)]
    assert last.shape == maps[-1].shape


def test_distances_beyond_the_table_have_its_last_bias():
    model = LSNet(**SMALL, bias_size=2)
    attention = model.stages[-1][3].mixer
    with torch.no_grad():
        attention.attention_biases.copy_(torch.arange(8.0).view(2, 4))
    # two rows and three columns; columns two apart count as one apart
    bias = attention.bias(2, 3)
    assert bias.shape == (2, 6, 6)
    assert bias[0, 0].tolist() == [0, 1, 1, 2, 3, 3]
    assert bias[1, 5].tolist() == [7, 7, 6, 5, 5, 4]


def test_the_attention_is_softmax_over_all_pixels():
    torch.manual_seed(0)
    attention = drawn(lambda: LSNet(**SMALL, bias_size=3)).stages[-1][3].mixer
    x = torch.randn(2, 24, 3, 2)
    query, key, value = attention.qkv(x).split([6, 6, 24], 1)
    q, k, v = (y.reshape(2, 2, -1, 6) for y in (attention.dw(query), key, value))
    scores = torch.einsum("bhcq,bhck->bhqk", q, k) / 3**0.5 + attention.bias(3, 2)
    out = torch.einsum("bhqk,bhck->bhcq", scores.softmax(-1), v).reshape(x.shape)
    torch.testing.assert_close(attention(x), x + attention.proj(out))


def test_norms_and_branches_merge():
    model = drawn(lambda: LSNet(**SMALL))
    x = torch.randn(2, 3, 40, 32)
    merged = reparameterize_model(model)
    torch.testing.assert_close(merged(x), model(x), rtol=1e-3, atol=1e-4)
    assert not any(type(module).__name__ in ("ConvNorm", "RepVggDw") for module in merged.modules())


def test_names_of_the_authors():
    model = lsnet_t(dims=(8,) * 4, depths=(1, 2, 1, 2), num_classes=2, bias_size=1)
    theirs = [f"blocks{i}.{2 * (i > 1)}.{name}" for i in range(1, 5) for name in ("mixer.conv.c.weight", "se.fc1.bias")]
    theirs += [
        f"blocks2.3.mixer.{name}" for name in ("lkp.cv1.c.weight", "lkp.cv2.bn.bias", "lkp.cv4.weight", "bn.weight")
    ]
    theirs += [f"blocks4.3.mixer.m.{name}" for name in ("qkv.c.weight", "dw.bn.bias", "proj.1.c.weight")]
    theirs += [
        f"blocks4.3.{name}" for name in ("mixer.m.attention_biases", "ffn.m.pw1.c.weight", "ffn.m.pw2.bn.weight")
    ]
    theirs += ["patch_embed.4.c.weight", "blocks2.0.c.weight", "blocks2.1.bn.bias", "head.bn.weight", "head.l.bias"]
    found = from_authors(dict.fromkeys([*theirs, "blocks4.3.mixer.m.attention_bias_idxs"]))
    assert len(found) == len(theirs)
    assert set(found) <= set(model.state_dict())


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_a_stand_in_starts_equal_on_flat_pictures(groups):
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 16, (5, 3), padding=(2, 2), dilation=(1, 2), groups=groups)
    x = torch.randn(2, 8, 1, 1).expand(-1, -1, 9, 9)
    ours = stand_in(layer, (1, 8, 9, 9))
    torch.testing.assert_close(ours(x)[..., 2:-2, 2:-2], layer(x)[..., 2:-2, 2:-2])
    ours(torch.randn(2, 8, 9, 9)).square().sum().backward()
    assert ours[0].bn.weight.grad.abs().min() > 0  # so that the aggregation comes in


def test_swap_knows_it():
    assert operator("ls").of == "conv"
    found = operator("ls").stand_in(nn.Conv2d(8, 4, 3, padding=1), (1, 8, 8, 8))
    assert isinstance(found[0], LSConv)


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (nn.Linear(8, 8), "ls stands in for a convolution, got Linear"),
        (nn.Conv2d(8, 8, 3, stride=2, padding=1), "needs stride 1 and full padding"),
        (nn.Conv2d(8, 8, 3), "needs stride 1 and full padding"),
        (nn.Conv2d(6, 8, 3, padding=1), "dim must be a multiple of 8, got 6; take 8"),
    ],
)
def test_layers_that_it_cannot_replace(layer, text):
    with pytest.raises(ValueError, match=text):
        stand_in(layer, (1, 8, 8, 8))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"depths": (1, 2)}, "dims and depths must have the same length, got 3 and 2"),
        ({"num_heads": 5}, "num_heads must divide the last stage's 24 channels, got 5"),
        ({"patch_size": 6}, "patch_size must be 2, 4, 8 or another power of two, got 6"),
        ({"patch_size": 1}, "another power of two, got 1"),
    ],
)
def test_sizes(options, text):
    with pytest.raises(ValueError, match=text):
        LSNet(**{**SMALL, **options})


def test_the_rival_has_maps_of_the_same_size():
    x = torch.randn(2, 3, 32, 32)
    theirs, ours = repvit(24).eval(), small().eval()
    assert theirs(x).shape == ours(x).shape == (2, 10)
    y, sides = theirs.stem(x), []
    for stage in theirs.stages:
        y = stage(y)
        sides.append(y.shape[-1])
    assert sides == [one.shape[-1] for one in ours.forward_intermediates(x)[1]] == [16, 8, 4]
