import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveal.evidence.drawn import drawn_
from foveal.evidence.models.backbone.casvit import SoftmaxMixer, small
from foveal.models.backbone.casvit import AdditiveMixer, CASViT, ChannelGate, SpatialGate, casvit_xs, from_authors

SMALL = {"dims": (4, 6, 8), "depths": (1, 2, 1), "num_classes": 5}


def depthwise(x, conv):
    """A depthwise 3×3 convolution tap by tap."""
    padded, (height, width) = F.pad(x, [1] * 4), x.shape[2:]
    taps = [
        conv.weight[:, 0, i, j, None, None] * padded[..., i : i + height, j : j + width]
        for i in range(3)
        for j in range(3)
    ]
    return sum(taps) + conv.bias[:, None, None]


def context(x, gates):
    conv, norm, _, score, _ = gates[0].gate
    y = (depthwise(x, conv) - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + norm.eps).sqrt()
    y = (y * norm.weight[:, None, None] + norm.bias[:, None, None]).clamp(min=0)
    x = x * torch.einsum("c,bchw->bhw", score.weight[0, :, 0, 0], y).sigmoid()[:, None]
    weight = gates[1].gate[0].weight[..., 0, 0]
    return x * torch.einsum("dc,bchw->bd", weight, x / x[0, 0].numel()).sigmoid()[..., None, None]


def plain(mixer, x):
    """The formula of the head docstring."""
    query, key, value = torch.einsum("dc,bchw->bdhw", mixer.qkv.weight[..., 0, 0], x).split(x.shape[1], 1)
    added = context(query, mixer.context_q) + context(key, mixer.context_k)
    return depthwise(depthwise(added, mixer.similarity) * value, mixer.proj)


@pytest.mark.parametrize("size", [(1, 1), (5, 8), (7, 3)])
def test_the_mixer_is_its_formula(size):
    torch.manual_seed(0)
    mixer = drawn_(AdditiveMixer(6)).double().eval()
    x = torch.randn(2, 6, *size, dtype=torch.float64, requires_grad=True)
    found, wanted = mixer(x), plain(mixer, x)
    torch.testing.assert_close(found, wanted)
    given = [x, *mixer.parameters()]
    torch.testing.assert_close(*(torch.autograd.grad(out.square().sum(), given) for out in (found, wanted)))


def test_with_gates_without_weights_a_quarter_passes():
    torch.manual_seed(0)
    mixer, x = AdditiveMixer(4).eval(), torch.randn(2, 4, 5, 6)
    with torch.no_grad():
        for gates in (mixer.context_q, mixer.context_k):
            gates[0].gate[3].weight.zero_()
            gates[1].gate[0].weight.zero_()
        query, key, value = mixer.qkv(x).chunk(3, 1)
        torch.testing.assert_close(mixer(x), mixer.proj(mixer.similarity((query + key) / 4) * value))


def test_one_gate_a_pixel_and_one_a_channel():
    torch.manual_seed(0)
    x = torch.rand(2, 5, 4, 3) + 0.5
    of_pixels, of_channels = SpatialGate(5)(x) / x, ChannelGate(5)(x) / x
    torch.testing.assert_close(of_pixels, of_pixels[:, :1].expand_as(x))
    torch.testing.assert_close(of_channels, of_channels[..., :1, :1].expand_as(x))
    assert of_pixels.std((2, 3)).min() > 0
    assert of_channels[..., 0, 0].std(1).min() > 0


def test_a_pixel_is_heard_everywhere_by_the_channel_gate_only():
    torch.manual_seed(0)
    mixer, x = drawn_(AdditiveMixer(4)).double().eval(), torch.randn(1, 4, 13, 13, dtype=torch.float64)
    changed = x.clone()
    changed[..., 6, 6] += 1
    heard = (mixer(changed) - mixer(x)).abs().amax(1)[0] > 1e-12
    assert heard.all()
    for gates in (mixer.context_q, mixer.context_k):
        gates[1] = nn.Identity()
    heard = (mixer(changed) - mixer(x)).abs().amax(1)[0] > 1e-12
    # three convolutions of 3×3
    assert int(heard.sum()) == 49


def test_maps_halve():
    last, maps = CASViT(**SMALL).eval().forward_intermediates(torch.randn(2, 3, 33, 64))
    assert [tuple(one.shape[1:]) for one in maps] == [(4, 9, 16), (6, 5, 8), (8, 3, 4)]
    assert last.shape == maps[-1].shape


def test_logits_of_two_heads_are_averaged():
    torch.manual_seed(0)
    model, x = CASViT(**SMALL).eval(), torch.randn(2, 3, 32, 32)
    pooled = model.forward_features(x).mean((2, 3))
    torch.testing.assert_close(model(x), (model.head(pooled) + model.head_dist(pooled)) / 2)


def test_names_of_the_authors():
    model = casvit_xs(dims=(4,) * 4, depths=(1,) * 4, num_classes=2)
    block = ["local_perception.network.1.bias", "norm1.weight", "attn.qkv.weight", "attn.dwc.bias", "attn.proj.weight"]
    block += ["attn.oper_q.0.block.3.weight", "attn.oper_k.1.block.1.weight", "mlp.fc1.weight", "mlp.fc2.bias"]
    theirs = [f"network.{i}.0.{name}" for i in (0, 2, 4, 6) for name in block]
    theirs += [f"network.{i}.{name}" for i in (1, 3, 5) for name in ("proj.bias", "norm.running_var")]
    theirs += ["patch_embed.3.weight", "norm.bias", "head.weight", "dist_head.bias"]
    found = from_authors(dict.fromkeys(theirs))
    assert len(found) == len(theirs)
    assert set(found) <= set(model.state_dict())


def test_sizes():
    with pytest.raises(ValueError, match="dims and depths must have the same length, got 3 and 2"):
        CASViT(**{**SMALL, "depths": (1, 2)})


def test_the_rival_mixer_and_the_network_of_the_trial():
    torch.manual_seed(0)
    x = torch.randn(2, 4, 3, 5)
    softmax = SoftmaxMixer(4).eval()
    torch.testing.assert_close(softmax(x), softmax.attention(x.flatten(2).mT).mT.reshape(x.shape))
    network, pictures = small().eval(), torch.randn(2, 3, 32, 32)
    assert network(pictures).shape == (2, 10)
    assert [one.shape[-1] for one in network.forward_intermediates(pictures)[1]] == [16, 8, 4]
