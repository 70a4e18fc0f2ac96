import timm
import torch
from released import same_names_and_shapes, with_batch_norms
from torch import nn

from foveal.measure.cost import count_macs
from foveal.models.backbone.plainmamba import (
    PlainMambaBlock,
    from_authors,
    plainmamba,
    plainmamba_l1,
    plainmamba_l2,
)


def test_macs_grow_as_the_pixels_do():
    model = plainmamba_l2(num_classes=0, depth=1, dim=16)
    small, large = (count_macs(model, (1, 3, side, side)) for side in (160, 320))
    assert large == 4 * small


def test_features_for_timm():
    arguments = {"dim": 8, "depth": 3, "state": 2, "patch_size": 8}
    model = timm.create_model("plainmamba_l1", features_only=True, out_indices=(0, 2), **arguments).eval()
    maps = model(torch.rand(1, 3, 20, 33))
    assert [tuple(found.shape) for found in maps] == [(1, 8, 3, 5)] * 2


def test_only_the_first_block_of_l1_convolves():
    model = plainmamba_l1(dim=8, depth=2, state=2)
    assert [block.convolve is None for block in model.blocks] == [False, True]
    assert all(block.convolve is None for block in plainmamba_l2(dim=8, depth=2, state=2).blocks)


def test_what_is_computed_does_not_hang_on_the_axis():
    """With a symmetric convolution and no directions, rows and columns are treated alike."""
    torch.manual_seed(0)
    block = PlainMambaBlock(8, state=2).double()
    with torch.no_grad():
        block.mixer.conv2d.weight.add_(block.mixer.conv2d.weight.transpose(2, 3).clone())
        block.mixer.scan.directions.zero_()
    picture = torch.rand(1, 8, 3, 5, dtype=torch.float64)
    one = block(picture.flatten(2).transpose(1, 2), (3, 5)).transpose(1, 2).unflatten(2, (3, 5))
    other = block(picture.transpose(2, 3).flatten(2).transpose(1, 2), (5, 3)).transpose(1, 2).unflatten(2, (5, 3))
    torch.testing.assert_close(one, other.transpose(2, 3))


def test_the_released_way_is_another():
    torch.manual_seed(0)
    paper, code = (plainmamba(8, 1, 0, 2, 4, num_classes=3, released=released).eval() for released in (False, True))
    nn.init.normal_(paper.blocks[0].mixer.scan.x_proj.weight)
    code.load_state_dict(paper.state_dict())
    x = torch.rand(1, 3, 16, 12)
    assert (paper(x) - code(x)).abs().max() > 1e-6


def authors(dim, depth, state=16, patch_size=16, classes=1000, *, convolutions=1, convolved=1):
    """Names and shapes in ChenhongyiYang/PlainMamba (commit 0a3aae7), its classifier in mmcls."""
    inner, rank = 2 * dim, -(-dim // 16)
    found = {
        "backbone.pos_embed": (1, 196, dim),
        "backbone.patch_embed.stem.0.weight": (64, 3, 7, 7),
        "backbone.patch_embed.stem.1": 64,
        "backbone.patch_embed.projection.weight": (dim, 64, patch_size // 2, patch_size // 2),
        "backbone.patch_embed.projection.bias": (dim,),
        "backbone.ln1.weight": (dim,),
        "backbone.ln1.bias": (dim,),
        "head.fc.weight": (classes, dim),
        "head.fc.bias": (classes,),
    }
    for i in range(convolutions):
        found[f"backbone.patch_embed.convs.{3 * i}.weight"] = (64, 64, 3, 3)
        found[f"backbone.patch_embed.convs.{3 * i + 1}"] = 64
    for i in range(depth):
        layer = {
            "norm.weight": (dim,),
            "norm.bias": (dim,),
            "mamba.A_log": (inner, state),
            "mamba.D": (inner,),
            "mamba.direction_Bs": (5, state),
            "mamba.in_proj.weight": (2 * inner, dim),
            "mamba.in_proj.bias": (2 * inner,),
            "mamba.conv2d.weight": (inner, 1, 7, 7),
            "mamba.conv2d.bias": (inner,),
            "mamba.x_proj.weight": (rank + 2 * state, inner),
            "mamba.dt_proj.weight": (inner, rank),
            "mamba.dt_proj.bias": (inner,),
            "mamba.out_proj.weight": (dim, inner),
            "mamba.out_proj.bias": (dim,),
        }
        if i < convolved:
            layer |= {"dw.0.weight": (dim, 1, 3, 3), "dw.1": dim}
        found |= {f"backbone.layers.{i}.{name}": shape for name, shape in layer.items()}
    return with_batch_norms(found)


def test_weights_of_the_authors_load():
    weights = {name: torch.rand(shape) for name, shape in authors(8, 2, 2, 4, 3).items()}
    model = plainmamba_l1(dim=8, depth=2, state=2, patch_size=4, num_classes=3, released=True)
    model.load_state_dict(from_authors(weights))
    mixer = model.blocks[1].mixer
    assert torch.equal(mixer.scan.D, weights["backbone.layers.1.mamba.D"])
    assert torch.equal(mixer.scan.dt_proj.bias, weights["backbone.layers.1.mamba.dt_proj.bias"])
    assert torch.equal(model.norm.bias, weights["backbone.ln1.bias"])


def test_the_released_l2_has_the_same_names_and_shapes():
    same_names_and_shapes(plainmamba_l2, from_authors, authors(384, 24, convolutions=2, convolved=0))
