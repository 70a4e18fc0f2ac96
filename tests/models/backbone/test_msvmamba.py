import pytest
import torch
import torch.nn.functional as F

from foveal.evidence.models.backbone.msvmamba import _tokens
from foveal.models.backbone.msvmamba import (
    MS2D,
    ConvFFN,
    MSVMamba,
    from_authors,
    msvmamba_micro,
    msvmamba_nano,
    msvmamba_tiny,
)


def test_an_odd_side_is_rounded_up_before_the_coarse_routes():
    assert _tokens(5, 3) == 15 + 3 * 3 * 2


@pytest.mark.parametrize("side", [(1, 1), (3, 2), (4, 5)])
def test_coarse_routes_are_one_sequence(side):
    torch.manual_seed(0)
    mixer, x = MS2D(4, state=2).double(), torch.randn(2, 8, *side, dtype=torch.float64)
    place = torch.arange(side[0] * side[1]).view(side)
    way = torch.cat([place.flatten().flip(0), place.T.flatten(), place.T.flatten().flip(0)])
    y = mixer.coarse(x.flatten(2)[:, None, :, way])[:, 0]
    y = F.layer_norm(y.mT, (8,)).mT
    expected = torch.zeros(2, 8, place.numel(), dtype=torch.float64).index_add(2, way, y)
    torch.testing.assert_close(mixer.scan_coarse(x), expected.view(x.shape), rtol=0, atol=1e-12)


def test_the_mixer_is_its_formula():
    torch.manual_seed(0)
    mixer, u = MS2D(4).double(), torch.randn(1, 4, 6, 5, dtype=torch.float64)
    x, z = mixer.in_proj(u).chunk(2, 1)
    fine = F.silu(mixer.conv(x)).flatten(2)[:, None]
    coarse = F.silu(F.conv2d(x, mixer.shrink.weight, mixer.shrink.bias, stride=2, padding=3, groups=8))
    enlarged = F.interpolate(mixer.scan_coarse(coarse), size=(6, 5), mode="bilinear")
    y = mixer.norm(mixer.s6(fine)[:, 0].unflatten(2, (6, 5))) + enlarged
    squeezed = mixer.excite.fc2(F.relu(mixer.excite.fc1(y.mean((2, 3), keepdim=True))))
    torch.testing.assert_close(mixer(u), mixer.out_proj(y * squeezed.sigmoid() * F.silu(z)))


def test_the_feed_forward_network_convolves_beside_a_shortcut():
    torch.manual_seed(0)
    ffn, x = ConvFFN(4), torch.randn(2, 4, 5, 3)
    wide = ffn.widen(x)
    torch.testing.assert_close(ffn(x), ffn.narrow(F.gelu(wide + ffn.conv(wide))))
    assert ffn.conv.weight.shape == (8, 1, 3, 3)


@pytest.mark.parametrize("side", [(33, 40), (70, 57)])
def test_any_size(side):
    network = msvmamba_nano(dim=4, depths=(1, 1, 1, 1), num_classes=3).eval()
    assert network(torch.rand(1, 3, *side)).shape == (1, 3)
    maps = network.forward_intermediates(torch.rand(1, 3, *side), intermediates_only=True)
    assert [m.shape[1] for m in maps] == [4, 8, 16, 32]


def authors(dim, depths, classes=1000, state=1):
    """Names and shapes in YuHengsss/MSVMamba (commit c394019), `VSSM` as vssm_*_224_ms.yaml say."""

    def layer(name, *shape, bias=True):
        return {f"{name}.weight": shape, **({f"{name}.bias": shape[:1]} if bias else {})}

    found = layer("patch_embed.0", dim, 3, 4, 4) | layer("patch_embed.2", dim)
    for i, depth in enumerate(depths):
        width = dim << i
        inner, rank = 2 * width, -(-width // 16)
        for j in range(depth):
            at = f"layers.{i}.blocks.{j}"
            found |= layer(f"{at}.norm", width) | layer(f"{at}.op.out_norm", inner)
            found |= layer(f"{at}.op.se.fc.0", inner // 8, inner, bias=False)
            found |= layer(f"{at}.op.se.fc.2", inner, inner // 8, bias=False)
            found |= layer(f"{at}.op.in_proj", 2 * inner, width, bias=False)
            found |= layer(f"{at}.op.conv2d", inner, 1, 3, 3) | layer(f"{at}.op.conv2d_b1", inner, 1, 7, 7)
            found |= {f"{at}.op.x_proj_weight": (2, rank + 2 * state, inner)}
            found |= {f"{at}.op.dt_projs_weight": (2, inner, rank), f"{at}.op.dt_projs_bias": (2, inner)}
            found |= {f"{at}.op.A_logs": (2 * inner, state), f"{at}.op.Ds": (2 * inner,)}
            found |= layer(f"{at}.op.out_proj", width, inner, bias=False) | layer(f"{at}.norm2", width)
            found |= layer(f"{at}.convFFN.linear1", inner, width, 1, 1) | layer(f"{at}.convFFN.dwc", inner, 1, 3, 3)
            found |= layer(f"{at}.convFFN.linear2", width, inner, 1, 1)
        if i < len(depths) - 1:
            at = f"layers.{i}.downsample"
            found |= layer(f"{at}.reduction", 2 * width, 4 * width, bias=False) | layer(f"{at}.norm", 4 * width)
    return found | layer("classifier.norm", width) | layer("classifier.head", classes, width)


@pytest.mark.parametrize(
    ("build", "dim", "depths"),
    [(msvmamba_nano, 48, (1, 2, 5, 2)), (msvmamba_micro, 64, (1, 2, 5, 2)), (msvmamba_tiny, 96, (1, 2, 9, 2))],
)
def test_weights_of_the_authors_load(build, dim, depths):
    with torch.device("meta"):
        theirs = {name: torch.empty(shape) for name, shape in authors(dim, depths).items()}
        build().load_state_dict(from_authors(theirs), assign=True)


def test_each_weight_of_the_authors_finds_its_place():
    theirs = {name: torch.full(shape, float(i)) for i, (name, shape) in enumerate(authors(8, (1, 2)).items())}
    route = "layers.1.blocks.1.op.dt_projs_bias"
    theirs[route] = torch.stack([torch.zeros(32), torch.ones(32)])
    network = MSVMamba(dim=8, depths=(1, 2))
    network.load_state_dict(from_authors(theirs))
    block = network.stages[1][2]
    # the scan of the whole map is the second of their routes
    assert torch.equal(block.mixer.coarse.dt_bias, torch.zeros(32))
    assert torch.equal(block.mixer.s6.dt_bias, torch.ones(32))
    for ours, name in (
        (block.norm1.weight, "layers.1.blocks.1.norm.weight"),
        (block.mixer.norm.bias, "layers.1.blocks.1.op.out_norm.bias"),
        (block.mixer.excite.fc2.weight, "layers.1.blocks.1.op.se.fc.2.weight"),
        (block.mlp.conv.bias, "layers.1.blocks.1.convFFN.dwc.bias"),
        (network.stages[1][0].norm.weight, "layers.0.downsample.norm.weight"),
    ):
        assert torch.equal(ours.flatten(), theirs[name].flatten()), name
