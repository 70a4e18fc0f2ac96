import pytest
import torch
import torch.nn.functional as F

from foveal.models.restore.dat import DAT, ChannelAttention, SpatialAttention

SMALL = {"dim": 8, "depths": (2,), "num_heads": 2, "window": (2, 4), "expansion": 2}


def drawn(module):
    """In double precision and eval mode, with every parameter and statistic other than at its start."""
    torch.manual_seed(0)
    module = module.double().eval()
    with torch.no_grad():
        for number in (*module.parameters(), *(b for k, b in module.named_buffers() if "running" in k)):
            number.add_(0.3 * torch.rand_like(number))
    return module


def maps(layer, x):
    """Sigmoids of c and s, (B, C, 1, 1) from one branch and (B, 1, H, W) from the other, in eval mode."""

    def two(convs, x):
        first, norm, _, second = convs
        x = torch.einsum("oi,bihw->bohw", first.weight[..., 0, 0], x) + first.bias[:, None, None]
        scale = norm.weight / (norm.running_var + 1e-5).sqrt()
        x = F.gelu((x - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None])
        return (torch.einsum("oi,bihw->bohw", second.weight[..., 0, 0], x) + second.bias[:, None, None]).sigmoid()

    pooled = x.mean((2, 3), keepdim=True)
    return two(list(layer.channel_interaction)[1:], pooled), two(layer.spatial_interaction, x)


def beside(layer, x):
    """Queries, keys and values, (B, H, W, C), and the convolution of the values, (B, C, H, W)."""
    q, k, v = (x @ layer.qkv.weight.mT + layer.qkv.bias).split(x.shape[-1], -1)
    conv, norm, _ = layer.dwconv
    near = F.conv2d(v.movedim(3, 1), conv.weight, conv.bias, padding=1, groups=x.shape[-1])
    near = F.batch_norm(near, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    return q, k, v, F.gelu(near)


def spatial(layer, x):
    """Attention over all pairs of the padded map, masked by the number of each token's window."""
    q, k, v, near = beside(layer, x)
    longer, (height, width) = max(layer.windows[0]), x.shape[1:3]
    q, k, v = (F.pad(y, (0, 0, 0, -width % longer, 0, -height % longer)) for y in (q, k, v))
    place = torch.cartesian_prod(*(torch.arange(side) for side in q.shape[1:3]))
    offset = place[:, None] - place
    halves = []
    for half, (window, shift) in enumerate(zip(layer.windows, layer.shifts, strict=True)):
        number = (place - torch.tensor(shift)).div(torch.tensor(window), rounding_mode="floor")
        together = (number[:, None] == number).all(-1)
        net = layer.pos[half]
        bias = net.pos3(net.pos2(net.pos1(net.pos_proj(offset.double())))).permute(2, 0, 1)
        parts = (y.chunk(2, -1)[half].flatten(1, 2).unflatten(-1, (layer.num_heads // 2, -1)) for y in (q, k, v))
        a, b, c = (y.transpose(1, 2) for y in parts)
        scores = (a @ b.mT / a.shape[-1] ** 0.5 + bias).masked_fill(~together, float("-inf"))
        halves.append((scores.softmax(-1) @ c).transpose(1, 2).flatten(2).unflatten(1, q.shape[1:3]))
    seen = torch.cat(halves, -1)[:, :height, :width].movedim(3, 1)
    return layer.proj((seen * maps(layer, near)[0] + near * maps(layer, seen)[1]).movedim(1, 3))


def channelwise(layer, x):
    """Each head's channels attend to each other, one head at a time."""
    q, k, v, near = beside(layer, x)
    heads = []
    for h, (a, b, c) in enumerate(zip(*(y.flatten(1, 2).chunk(layer.num_heads, -1) for y in (q, k, v)), strict=True)):
        a, b = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
        scores = torch.einsum("bni,bnj->bij", a, b) * layer.temperature[h]
        heads.append(torch.einsum("bij,bnj->bni", scores.softmax(-1), c))
    seen = torch.cat(heads, -1).unflatten(1, x.shape[1:3]).movedim(3, 1)
    return layer.proj((seen * maps(layer, near)[1] + near * maps(layer, seen)[0]).movedim(1, 3))


@pytest.mark.parametrize(
    ("layer", "reference"),
    [
        (SpatialAttention(16, 4, (2, 4)), spatial),
        (SpatialAttention(16, 4, (2, 4), shifted=True), spatial),
        (ChannelAttention(16, 2), channelwise),
    ],
    ids=["spatial", "shifted", "channel"],
)
@pytest.mark.parametrize("size", [(8, 4), (5, 7), (1, 1)])
def test_equals_the_equations(layer, reference, size):
    layer = drawn(layer)
    x = torch.randn(2, 16, *size, dtype=torch.float64).permute(0, 2, 3, 1).requires_grad_()
    ours, theirs = layer(x), reference(layer, x)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)
    weights = torch.randn(x.shape, dtype=torch.float64)
    wanted = [x, *layer.parameters()]
    gradients = [torch.autograd.grad((out * weights).sum(), wanted) for out in (ours, theirs)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_a_block_is_attention_then_a_gated_feed_forward():
    block = drawn(DAT(2, **SMALL)).layers[0].blocks[1]
    x = torch.randn(1, 5, 3, 8, dtype=torch.float64)
    y = x + channelwise(block.attn, F.layer_norm(x, (8,), block.norm1.weight, block.norm1.bias))
    ffn = block.ffn
    a, b = F.gelu(ffn.fc1(F.layer_norm(y, (8,), block.norm2.weight, block.norm2.bias))).split(8, -1)
    b = F.layer_norm(b, (8,), ffn.norm.weight, ffn.norm.bias).movedim(3, 1)
    gated = a * F.conv2d(b, ffn.conv.weight, ffn.conv.bias, padding=1, groups=8).movedim(1, 3)
    torch.testing.assert_close(block(x), y + ffn.fc2(gated), rtol=0, atol=1e-11)


@pytest.mark.parametrize("light", [True, False])
@pytest.mark.parametrize(("scale", "channels"), [(2, 3), (3, 1), (4, 3)])
def test_shape(scale, channels, light):
    network = DAT(scale, in_channels=channels, light=light, **SMALL)
    assert network(torch.rand(2, channels, 3, 5)).shape == (2, channels, 3 * scale, 5 * scale)


def kinds(**words):
    network = DAT(2, **SMALL | words)
    return [
        [type(b.attn).__name__[0] + str(int(any(map(any, getattr(b.attn, "shifts", ()))))) for b in group.blocks]
        for group in network.layers
    ]


def test_kinds_take_turns_and_so_do_shifts():
    assert kinds(depths=(5, 4)) == [["S0", "C0", "S1", "C0", "S0"], ["S1", "C0", "S0", "C0"]]
    assert kinds(depths=(3,), kinds=("spatial",)) == [["S0", "S1", "S0"]]
    assert kinds(depths=(2,), kinds=("channel",)) == [["C0", "C0"]]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ({"scale": 5}, "scale must be 2, 3 or 4, got 5"),
        ({"kinds": ()}, r"kinds must be one or more of spatial, channel, got \(\)"),
        ({"kinds": ("windows",)}, r"kinds must be one or more of spatial, channel, got \('windows',\)"),
        ({"num_heads": 1}, "num_heads must be even and divide dim = 8, got 1"),
        ({"num_heads": 6}, "num_heads must be even and divide dim = 8, got 6"),
        ({"num_heads": 3, "kinds": ("channel",)}, "dim must be a multiple of num_heads = 3, got 8"),
    ],
)
def test_wrong_arguments_are_refused(words, text):
    with pytest.raises(ValueError, match=text):
        DAT(**SMALL | words)
