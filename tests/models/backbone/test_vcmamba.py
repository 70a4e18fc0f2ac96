import pytest
import timm
import torch
from released import same_names_and_shapes, with_batch_norms
from torch import nn

from foveal.measure.cost import count_parameters
from foveal.models.backbone.plainmamba import plainmamba
from foveal.models.backbone.vcmamba import ConvBlock, MambaBlock, VCMamba, from_authors, vcmamba_m, vcmamba_s

TINY = {"dims": (4, 4, 8, 8), "depths": (1, 1, 1, 2)}


def test_the_rival_of_equal_size_has_as_many_parameters():
    with torch.device("meta"):
        ours, one, two = (count_parameters(net) for net in (vcmamba_m(), plainmamba(340, 1), plainmamba(340, 2)))
    assert one + 23 * (two - one) == pytest.approx(ours, rel=0.01)


def test_scans_end_the_last_stage():
    model = VCMamba((4, 4, 8, 8), (1, 1, 1, 3), scanning=2, state=2)
    kinds = [type(layer) for layer in model.stages[3] if isinstance(layer, ConvBlock | MambaBlock)]
    assert kinds == [ConvBlock, MambaBlock, MambaBlock]
    assert not any(isinstance(m, MambaBlock) for stage in model.stages[:3] for m in stage.modules())


def test_features_for_timm():
    model = timm.create_model("vcmamba_m", features_only=True, **TINY).eval()
    maps = model(torch.rand(1, 3, 70, 37))
    assert [tuple(found.shape) for found in maps] == [(1, 4, 18, 10), (1, 4, 9, 5), (1, 8, 5, 3), (1, 8, 3, 2)]


def test_logits_are_the_mean_of_two_classifiers():
    torch.manual_seed(0)
    model = vcmamba_m(num_classes=3, **TINY).eval()
    x = torch.rand(2, 3, 32, 32)
    pooled = model.forward_head(model.forward_features(x), pre_logits=True)
    assert pooled.shape == (2, 8)
    torch.testing.assert_close(model(x), (model.head(pooled) + model.head_dist(pooled)) / 2)
    assert model.get_classifier() == (model.head, model.head_dist)
    model.reset_classifier(0)
    assert isinstance(model.head, nn.Identity)
    assert isinstance(model.head_dist, nn.Identity)
    torch.testing.assert_close(model(x), pooled)


def test_one_classifier_on_demand():
    torch.manual_seed(0)
    model = vcmamba_m(num_classes=3, distilled=False, **TINY).eval()
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(model(x), model.head(model.forward_features(x).mean((2, 3))))


def test_positions_are_resized():
    torch.manual_seed(0)
    model = vcmamba_s(num_classes=3, **TINY).eval()
    place = next(layer for layer in model.stages[3] if type(layer).__name__ == "_Positions")
    x = torch.rand(1, 8, 7, 7)
    torch.testing.assert_close(place(x), x + place.embed)
    assert place(torch.rand(1, 8, 3, 5)).shape == (1, 8, 3, 5)


def authors(dims, depths, scanning=4, classes=1000):
    """Names and shapes in Wertyuui345/VCMamba (commit 3433dc0), `EfficientFormer`; a number stands for a batch norm."""
    half, last = dims[0] // 2, dims[-1]
    found = {
        "patch_embed.0.weight": (half, 3, 3, 3),
        "patch_embed.0.bias": (half,),
        "patch_embed.1": half,
        "patch_embed.3.weight": (dims[0], half, 3, 3),
        "patch_embed.3.bias": (dims[0],),
        "patch_embed.4": dims[0],
        "pos_embed": (1, last, 7, 7),
        "norm.weight": (last,),
        "norm.bias": (last,),
    }
    for head in ("head", "dist_head"):
        found |= {f"{head}.weight": (classes, last), f"{head}.bias": (classes,)}
    for i, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
        wide, inner, rank = 4 * dim, 2 * dim, -(-dim // 16)
        mlp = {
            "mlp.fc1.weight": (wide, dim, 1, 1),
            "mlp.fc1.bias": (wide,),
            "mlp.norm1": wide,
            "mlp.mid.weight": (wide, 1, 3, 3),
            "mlp.mid.bias": (wide,),
            "mlp.mid_norm": wide,
            "mlp.fc2.weight": (dim, wide, 1, 1),
            "mlp.fc2.bias": (dim,),
            "mlp.norm2": dim,
        }
        scan = {
            "norm": dim,
            "norm2": dim,
            "mamba.A_log": (inner, 16),
            "mamba.D": (inner,),
            "mamba.direction_Bs": (5, 16),
            "mamba.in_conv.0.weight": (inner, dim, 1, 1),
            "mamba.in_conv.0.bias": (inner,),
            "mamba.in_conv.1": inner,
            "mamba.conv2d.weight": (inner, 1, 7, 7),
            "mamba.conv2d.bias": (inner,),
            "mamba.x_proj.weight": (rank + 32, inner),
            "mamba.dt_proj.weight": (inner, rank),
            "mamba.dt_proj.bias": (inner,),
            "mamba.norm.weight": (inner,),
            "mamba.norm.bias": (inner,),
            "mamba.out_conv.1.weight": (dim, inner, 1, 1),
            "mamba.out_conv.1.bias": (dim,),
            "mamba.out_conv.2": dim,
        }
        for j in range(depth):
            scans = i == 3 and j >= depth - scanning
            block = mlp | (scan if scans else {"layer_scale_2": (dim, 1, 1)})
            found |= {f"network.{2 * i}.{j}.{name}": shape for name, shape in block.items()}
        if i < 3:
            down = f"network.{2 * i + 1}"
            found |= {f"{down}.proj.weight": (dims[i + 1], dim, 3, 3), f"{down}.proj.bias": (dims[i + 1],)}
            found[f"{down}.norm"] = dims[i + 1]
    return with_batch_norms(found)


def test_weights_of_the_authors_load():
    dims, depths = (4, 6, 8, 10), (2, 1, 1, 5)
    weights = {name: torch.rand(shape) for name, shape in authors(dims, depths, 3, 7).items()}
    model = VCMamba(dims, depths, scanning=3, num_classes=7, released=True)
    model.load_state_dict(from_authors(weights))
    convolution, scan = model.stages[3][3], model.stages[3][6]
    assert torch.equal(convolution.gamma, weights["network.6.1.layer_scale_2"])
    assert torch.equal(scan.norm1.bias, weights["network.6.3.norm.bias"])
    assert torch.equal(scan.norm2.bias, weights["network.6.3.norm2.bias"])
    assert torch.equal(scan.ffn[7].bias, weights["network.6.3.mlp.norm2.bias"])
    assert torch.equal(model.stages[2][1].bias, weights["network.3.norm.bias"])
    assert torch.equal(model.stages[3][4].embed, weights["pos_embed"])


def test_the_released_small_has_the_same_names_and_shapes():
    same_names_and_shapes(vcmamba_s, from_authors, authors((32, 64, 144, 288), (4, 4, 12, 8)))
