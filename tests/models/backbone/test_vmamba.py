import pytest
import timm
import torch
from released import same_names_and_shapes
from torch import nn

from foveal.models.backbone.vmamba import (
    VMamba,
    VSSBlock,
    from_authors,
    init_weights,
    vmamba_base,
    vmamba_small,
    vmamba_tiny,
)
from foveal.nn.ss2d import SS2D

SMALL = {"dim": 8, "depths": (1, 1, 2, 1), "num_classes": 5}


def test_maps_halve_from_stage_to_stage():
    network = VMamba(**SMALL).eval()
    maps = network.forward_intermediates(torch.rand(1, 3, 70, 53), intermediates_only=True)
    assert [tuple(m.shape[1:]) for m in maps] == [(8, 18, 14), (16, 9, 7), (32, 5, 4), (64, 3, 2)]
    assert [info["reduction"] for info in network.feature_info] == [4, 8, 16, 32]


def test_timm_makes_it_and_its_features():
    model = timm.create_model("vmamba_tiny", features_only=True, out_indices=(1, 3), in_chans=1, **SMALL)
    assert [tuple(m.shape) for m in model(torch.rand(1, 1, 32, 48))] == [(1, 16, 4, 6), (1, 64, 1, 2)]
    assert model.feature_info.channels() == [16, 64]


def test_a_block_adds_two_branches_and_drops_them():
    torch.manual_seed(0)
    block, x = VSSBlock(4, nn.Identity(), nn.Identity(), drop_path=0.5), torch.randn(64, 4, 1, 1)
    y = x + block.norm1(x)
    torch.testing.assert_close(block.eval()(x), y + block.norm2(y))
    unchanged = (block.train()(x) == x).flatten(1).all(1).float().mean()
    assert 0.1 < unchanged < 0.4


def test_drop_path_rises_to_the_last_block():
    rates = [m.drop_path.drop_prob for m in VMamba(**SMALL, drop_path=0.4).modules() if isinstance(m, VSSBlock)]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


def test_scanned_channels_follow_expand():
    for build, expand in ((vmamba_tiny, 1), (vmamba_small, 2), (vmamba_base, 2)):
        widths = [m.s6.x_proj.shape[-1] for m in build(**SMALL).modules() if isinstance(m, SS2D)]
        assert widths == [expand * w for w in (8, 16, 32, 32, 64)]


def test_weights_start_near_zero_where_channels_are_multiplied():
    torch.manual_seed(0)
    pointwise, depthwise, linear = nn.Conv2d(64, 64, 1), nn.Conv2d(64, 64, 3, groups=64), nn.Linear(64, 64)
    before = depthwise.weight.clone()
    nn.Sequential(pointwise, depthwise, linear, nn.Conv2d(2, 2, 1, bias=False)).apply(init_weights)
    for layer in (pointwise, linear):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert layer.bias.abs().max() == 0
    assert torch.equal(depthwise.weight, before)


def test_without_classes_it_gives_pooled_features():
    network = vmamba_tiny(**{**SMALL, "num_classes": 0}).eval()
    x = torch.rand(2, 3, 40, 33)
    torch.testing.assert_close(network(x), network.forward_features(x).mean((2, 3)))


def authors(dim, depths, expand=1, classes=1000):
    """Names and shapes in MzeroMiko/VMamba (commit 2ed52ea), `VSSM` as the files vmambav2*.yaml configure it."""
    half = dim // 2
    found = {
        "patch_embed.0.weight": (half, 3, 3, 3),
        "patch_embed.0.bias": (half,),
        "patch_embed.2.weight": (half,),
        "patch_embed.2.bias": (half,),
        "patch_embed.5.weight": (dim, half, 3, 3),
        "patch_embed.5.bias": (dim,),
        "patch_embed.7.weight": (dim,),
        "patch_embed.7.bias": (dim,),
    }
    for i, depth in enumerate(depths):
        width, inner, rank = dim << i, expand * (dim << i), -(-(dim << i) // 16)
        block = {
            "norm.weight": (width,),
            "norm.bias": (width,),
            "op.x_proj_weight": (4, rank + 2, inner),
            "op.A_logs": (4 * inner, 1),
            "op.Ds": (4 * inner,),
            "op.dt_projs_weight": (4, inner, rank),
            "op.dt_projs_bias": (4, inner),
            "op.out_norm.weight": (inner,),
            "op.out_norm.bias": (inner,),
            "op.in_proj.weight": (inner, width),
            "op.conv2d.weight": (inner, 1, 3, 3),
            "op.out_proj.weight": (width, inner),
            "norm2.weight": (width,),
            "norm2.bias": (width,),
            "mlp.fc1.weight": (4 * width, width),
            "mlp.fc1.bias": (4 * width,),
            "mlp.fc2.weight": (width, 4 * width),
            "mlp.fc2.bias": (width,),
        }
        found |= {f"layers.{i}.blocks.{j}.{name}": shape for j in range(depth) for name, shape in block.items()}
        if i < len(depths) - 1:
            down = f"layers.{i}.downsample"
            found |= {f"{down}.1.weight": (2 * width, width, 3, 3), f"{down}.1.bias": (2 * width,)}
            found |= {f"{down}.3.weight": (2 * width,), f"{down}.3.bias": (2 * width,)}
    last = dim << (len(depths) - 1)
    found |= {"classifier.norm.weight": (last,), "classifier.norm.bias": (last,)}
    return found | {"classifier.head.weight": (classes, last), "classifier.head.bias": (classes,)}


def test_weights_of_the_authors_load():
    weights = {name: torch.rand(shape) for name, shape in authors(8, (1, 2, 1), 2, 5).items()}
    # older files hold what multiplies channels as 1×1 convolutions
    weights["layers.0.blocks.0.op.in_proj.weight"].unsqueeze_(-1).unsqueeze_(-1)
    model = VMamba(dim=8, depths=(1, 2, 1), expand=2.0, num_classes=5)
    model.load_state_dict(from_authors(weights))
    block, prefix = model.stages[1][3], "layers.1.blocks.1"
    assert torch.equal(block.norm1.bias, weights[f"{prefix}.norm.bias"])
    assert torch.equal(block.mixer.norm.bias, weights[f"{prefix}.op.out_norm.bias"])
    assert torch.equal(block.mixer.s6.dt_bias[32:64], weights[f"{prefix}.op.dt_projs_bias"][1])
    assert torch.equal(model.stages[2][1].bias, weights["layers.1.downsample.3.bias"])
    assert torch.equal(model.stem[3].weight, weights["patch_embed.5.weight"])
    assert torch.equal(model.norm.weight, weights["classifier.norm.weight"])


def test_the_released_tiny_has_the_same_names_and_shapes():
    assert len(authors(96, (2, 2, 8, 2))) == 276
    same_names_and_shapes(vmamba_tiny, from_authors, authors(96, (2, 2, 8, 2)))
