import pytest
import timm
import torch
from timm.utils.model import reparameterize_model
from torch import nn

from foveal.evidence.drawn import drawn_
from foveal.evidence.nn.efficientvit_m import mobilenetv3, small
from foveal.evidence.rivals.folded import folded
from foveal.nn.efficientvit_m import (
    CascadedGroupAttention,
    cascaded_attention,
    cascaded_attention_reference,
    use_cascaded_,
)

SMALL = {"embed_dim": (16, 18, 24), "num_heads": (2, 3, 4), "key_dim": (4, 4, 4), "depth": (1, 1, 1), "num_classes": 5}


def layers(heads, part, *, key_dim=3):
    torch.manual_seed(0)
    project = [nn.Conv2d(part, 2 * key_dim + part, 1).double() for _ in range(heads)]
    filters = [nn.Conv2d(key_dim, key_dim, 3, padding=1, groups=key_dim).double() for _ in range(heads)]
    return project, filters


def picture(channels, height, width):
    return torch.randn(2, channels, height, width, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(("heads", "part", "height", "width"), [(1, 5, 1, 1), (2, 3, 3, 5), (3, 1, 7, 1)])
def test_it_is_that_pixel_by_pixel(heads, part, height, width):
    (project, filters), x = layers(heads, part), picture(heads * part, height, width)
    position = torch.randn(heads, height * width, height * width, dtype=torch.float64, requires_grad=True)
    found = [f(x, project, filters, position, key_dim=3) for f in (cascaded_attention, cascaded_attention_reference)]
    torch.testing.assert_close(*found)
    wanted = [x, position, *(layer.weight for layer in project + filters)]
    torch.testing.assert_close(*(torch.autograd.grad(out.square().sum(), wanted) for out in found))


def test_one_head_is_torchs_attention():
    (project, filters), x = layers(1, 4), picture(4, 5, 3)
    position = torch.randn(1, 15, 15, dtype=torch.float64)
    query, key, value = project[0](x).split([3, 3, 4], 1)
    query, key, value = (part.flatten(2).mT for part in (filters[0](query), key, value))
    want = nn.functional.scaled_dot_product_attention(query, key, value, position).mT.reshape(x.shape)
    torch.testing.assert_close(cascaded_attention(x, project, filters, position, key_dim=3), want)


def test_a_head_hears_of_those_before_it_only():
    (project, filters), x = layers(3, 2), picture(6, 4, 4)
    position = torch.zeros(3, 16, 16, dtype=torch.float64)
    before, moved = cascaded_attention(x, project, filters, position, key_dim=3), []
    for head in range(3):
        changed = x.detach().clone()
        changed[:, 2 * head] += 1
        after = cascaded_attention(changed, project, filters, position, key_dim=3)
        moved.append([bool((part.abs() > 1e-12).any()) for part in (after - before).split(2, 1)])
    assert moved == [[True, True, True], [False, True, True], [False, False, True]]


def test_distances_share_a_bias():
    layer = CascadedGroupAttention(4, 2, key_dim=2, kernels=(1, 1), side=3)
    with torch.no_grad():
        layer.attention_biases.copy_(torch.arange(18.0).view(2, 9))
    position = layer.position(2, 3)
    assert position.shape == (2, 6, 6)
    assert position[0, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert position[1, 5].tolist() == [14, 13, 12, 11, 10, 9]


@pytest.mark.parametrize("merged", [False, True])
def test_timms_network_gives_the_same_logits(merged):
    torch.manual_seed(0)
    model = drawn_(timm.create_model("efficientvit_m0", img_size=128, **SMALL).eval())
    x = torch.randn(2, 3, 128, 128)
    with torch.no_grad():
        before = model(x)
        model = reparameterize_model(model) if merged else model
        assert use_cascaded_(model) is model
        assert sum(isinstance(module, CascadedGroupAttention) for module in model.modules()) == 3
        torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)
        model.stages[1].blocks[0].mixer.m.attn.attention_biases[:, 0] += 5
        assert not torch.allclose(model(x), before, rtol=1e-3, atol=1e-3)


def test_folding_leaves_no_batch_norm():
    model = reparameterize_model(use_cascaded_(timm.create_model("efficientvit_m0", **SMALL).eval()))
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def test_a_folded_rival_is_the_rival():
    def build():
        torch.manual_seed(0)
        return drawn_(timm.create_model("test_efficientnet", num_classes=4).eval())

    x = torch.randn(2, 3, 64, 64)
    model = folded(build)()
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    with torch.inference_mode():
        torch.testing.assert_close(model(x), build()(x), rtol=1e-3, atol=1e-4)


def test_a_norm_that_does_not_fold_is_named():
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1))
    with pytest.raises(RuntimeError, match="expected all batch norms to fold, 1 remain: 0"):
        folded(lambda: network)()


def test_another_network_is_refused():
    with pytest.raises(ValueError, match="expected an EfficientViT-M of timm, got Linear without cascaded attention"):
        use_cascaded_(nn.Linear(2, 2))


def test_sizes():
    with pytest.raises(ValueError, match="num_heads must divide dim, got 3 for 16 channels"):
        CascadedGroupAttention(16, 3)
    with pytest.raises(ValueError, match="kernels must name one for each of 4 heads, got 2"):
        CascadedGroupAttention(16, 4, kernels=(3, 3))
    with pytest.raises(ValueError, match="expected a map of 7×7 pixels at most, got 8×3; attend in windows"):
        CascadedGroupAttention(16)(torch.randn(1, 16, 8, 3))


def test_both_networks_have_maps_of_the_same_size():
    x = torch.randn(2, 3, 32, 32)
    ours, theirs = small().eval(), mobilenetv3(16).eval()
    assert ours(x).shape == theirs(x).shape == (2, 10)
    y, sides = theirs.conv_stem(x), []
    for block in theirs.blocks:
        y = block(y)
        sides.append(y.shape[-1])
    assert sides[:3] == [one.shape[-1] for one in ours.forward_intermediates(x)[1]] == [16, 8, 4]
    assert sum(isinstance(module, CascadedGroupAttention) for module in ours.modules()) == 4
