import pytest
import torch
import torch.nn.functional as F

from foveal.evidence.models.backbone.groupmamba import scan_macs, ungrouped
from foveal.models.backbone.groupmamba import (
    VSSS,
    GroupMamba,
    GroupMambaBlock,
    GroupMambaLayer,
    from_authors,
    groupmamba_base,
    groupmamba_small,
    groupmamba_tiny,
)
from foveal.nn.ss2d import SS2D

SMALL = {"dims": (8, 8, 12, 16), "depths": (1, 1, 1, 1), "num_classes": 5}


def test_a_quarter_of_the_scans():
    assert 4 * scan_macs(VSSS(32)) == scan_macs(ungrouped(32))
    assert isinstance(ungrouped(32), SS2D)


def test_groups_do_not_mix():
    torch.manual_seed(0)
    mixer, x = VSSS(16), torch.randn(1, 16, 4, 3)
    changed = x.clone()
    changed[:, 4:8] += torch.randn(1, 4, 4, 3)
    difference = (mixer(changed) - mixer(x)).abs().amax((0, 2, 3)).view(4, 4).amax(1) > 0
    assert difference.tolist() == [False, True, False, False]


@pytest.mark.parametrize("side", [(1, 1), (5, 3)])
def test_a_group_is_ss2d_with_one_route(side):
    """The first group goes by rows, as the first of the raster's two routes; the second of them is made silent."""
    torch.manual_seed(0)
    mixer, alone = VSSS(24).double(), SS2D(6, state=1, expand=1.0, order="raster", num_routes=2).double()
    torch.nn.init.normal_(mixer.norm_weight)
    torch.nn.init.normal_(mixer.norm_bias)
    with torch.no_grad():
        alone.in_proj.weight.copy_(torch.cat([mixer.in_proj.weight[:6], mixer.gate_proj.weight[:6]]))
        alone.conv.weight.copy_(mixer.conv.weight[:6])
        alone.conv.bias.copy_(mixer.conv.bias[:6])
        for name in ("x_proj", "dt_proj", "dt_bias", "A_log", "D"):
            ours = getattr(alone.s6, name)
            half = ours.shape[0] // 2
            ours[:half] = getattr(mixer.s6, name)[:half]
        alone.s6.x_proj[1] = 0
        alone.s6.D[6:] = 0
        alone.norm.weight.copy_(mixer.norm_weight[0].flatten())
        alone.norm.bias.copy_(mixer.norm_bias[0].flatten())
        alone.out_proj.weight.copy_(mixer.out_proj.weight[:6])
    x = torch.randn(2, 24, *side, dtype=torch.float64)
    torch.testing.assert_close(mixer(x)[:, :6], alone(x[:, :6]), rtol=0, atol=1e-12)


def test_a_layer_weighs_channels_by_their_mean():
    torch.manual_seed(0)
    layer, x = GroupMambaLayer(32), torch.randn(2, 32, 3, 4)
    torch.nn.init.normal_(layer.scale)
    n = layer.norm(x)
    affinity = layer.expand(F.relu(layer.reduce(n.mean((2, 3), keepdim=True)))).sigmoid()
    torch.testing.assert_close(layer(x), layer.proj(layer.norm(layer.vsss(n) * layer.scale * n * affinity)))


def test_channels_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="dim must be a multiple of 4, one group per direction, got 10; take 12"):
        GroupMambaLayer(10)


def test_two_classifiers_are_averaged_and_trained_apart():
    torch.manual_seed(0)
    network, x = groupmamba_tiny(**SMALL).eval(), torch.rand(2, 3, 32, 40)
    features = network.forward_head(network.forward_features(x), pre_logits=True)
    averaged = (network.head(features) + network.head_dist(features)) / 2
    torch.testing.assert_close(network(x), averaged)
    network.distilled_training = True
    torch.testing.assert_close(network(x), averaged)
    label, teacher = network.train()(x)
    assert label.shape == teacher.shape == (2, 5)
    assert not torch.equal(label, teacher)


def test_both_classifiers_are_replaced():
    network = GroupMamba(**SMALL, stem_dim=4).eval()
    network.reset_classifier(7)
    assert network(torch.rand(1, 3, 32, 32)).shape == (1, 7)
    network.reset_classifier(0)
    assert network(torch.rand(1, 3, 32, 32)).shape == (1, 16)


@pytest.mark.parametrize("side", [(33, 40), (71, 57)])
def test_any_size_and_its_maps(side):
    network = GroupMamba(**SMALL, stem_dim=4, drop_path=0.3).eval()
    last, maps = network.forward_intermediates(torch.rand(1, 3, *side))
    assert [m.shape[1] for m in maps] == [8, 8, 12, 16]
    assert last.shape[2:] == maps[-1].shape[2:] == ((side[0] + 31) // 32, (side[1] + 31) // 32)
    rates = [m.drop_path.drop_prob for m in network.modules() if isinstance(m, GroupMambaBlock)]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])


def authors(stem, dims, depths, classes=1000):
    """Names and shapes in Amshaker/GroupMamba (commit c1800ed), classification/models/groupmamba.py."""

    def layer(name, *shape, bias=True):
        return {f"{name}.weight": shape, **({f"{name}.bias": shape[:1]} if bias else {})}

    def attention(at, width):
        group, rank = width // 4, -(-width // 64)
        found = layer(f"{at}.fc1", width // 16, width) | layer(f"{at}.fc2", width, width // 16)
        found |= layer(f"{at}.norm", width) | layer(f"{at}.proj", width, width) | {f"{at}.skip_scale": (1,)}
        for g in (f"{at}.mamba_g{k}" for k in (1, 2, 3, 4)):
            found |= layer(f"{g}.out_norm", group) | layer(f"{g}.in_proj", 2 * group, group, bias=False)
            found |= layer(f"{g}.conv2d", group, 1, 3, 3) | layer(f"{g}.out_proj", group, group, bias=False)
            found |= {f"{g}.x_proj_weight": (1, rank + 2, group), f"{g}.dt_projs_weight": (1, group, rank)}
            found |= {f"{g}.dt_projs_bias": (1, group), f"{g}.A_logs": (group, 1), f"{g}.Ds": (group,)}
        return found

    found = {}
    for k, (i, shape) in enumerate(((0, (stem, 3, 7, 7)), (3, (stem, stem, 3, 3)), (6, (stem, stem, 3, 3)))):
        norm = f"patch_embed1.conv.{3 * k + 1}"
        found |= layer(f"patch_embed1.conv.{i}", *shape, bias=False) | layer(norm, stem)
        found |= {f"{norm}.running_mean": (stem,), f"{norm}.running_var": (stem,), f"{norm}.num_batches_tracked": ()}
    for i, (width, depth, ratio) in enumerate(zip(dims, depths, (8, 8, 4, 4), strict=False), 1):
        before, hidden = (dims[i - 2] if i > 1 else stem), ratio * width
        found |= layer(f"patch_embed{i}.proj", width, before, 3, 3) | layer(f"patch_embed{i}.norm", width)
        for at in (f"block{i}.{j}" for j in range(depth)):
            found |= layer(f"{at}.norm2", width) | attention(f"{at}.attn", width)
            found |= layer(f"{at}.mlp.fc1", hidden, width) | layer(f"{at}.mlp.dwconv.dwconv", hidden, 1, 3, 3)
            found |= layer(f"{at}.mlp.fc2", width, hidden)
        found |= layer(f"norm{i}", width)
    at = "post_network.0"
    found |= layer(f"{at}.norm1", width) | layer(f"{at}.norm2", width) | attention(f"{at}.attn", width)
    found |= layer(f"{at}.mlp.fc1", hidden, width) | layer(f"{at}.mlp.fc2", width, hidden)
    return found | layer("head", classes, width) | layer("dist_head", classes, width)


@pytest.mark.parametrize(
    ("build", "stem", "dims"),
    [
        (groupmamba_tiny, 32, (64, 128, 348, 448)),
        (groupmamba_small, 64, (64, 128, 348, 512)),
        (groupmamba_base, 64, (96, 192, 424, 512)),
    ],
)
def test_weights_of_the_authors_load(build, stem, dims):
    depths = (1, 1, 2, 1)  # whole networks take a second to build
    with torch.device("meta"):
        theirs = {name: torch.empty(shape) for name, shape in authors(stem, dims, depths).items()}
        build(depths=depths).load_state_dict(from_authors(theirs), assign=True)


def test_each_weight_of_the_authors_finds_its_place():
    dims, depths = (16, 32, 16, 32), (1, 1, 2, 1)
    shapes = authors(8, dims, depths)
    theirs = {name: torch.full(shape, float(i)) for i, (name, shape) in enumerate(shapes.items())}
    network = GroupMamba(stem_dim=8, dims=dims, depths=depths)
    network.load_state_dict(from_authors(theirs))
    block = network.stages[2][3]
    for ours, name in (
        (block.layer.vsss.in_proj.weight[8:12], "block3.1.attn.mamba_g3.in_proj.weight"),
        (block.layer.vsss.gate_proj.weight[8:12], "block3.1.attn.mamba_g3.in_proj.weight"),
        (block.layer.vsss.s6.D[4:8], "block3.1.attn.mamba_g2.Ds"),
        (block.layer.vsss.norm_bias[3], "block3.1.attn.mamba_g4.out_norm.bias"),
        (block.layer.scale, "block3.1.attn.skip_scale"),
        (block.mlp[0].weight, "block3.1.norm2.weight"),
        (block.mlp[2].bias, "block3.1.mlp.dwconv.dwconv.bias"),
        (network.stages[2][4].weight, "norm3.weight"),
        (network.head_norm.weight, "norm4.weight"),
        (network.mean_block.norm.weight, "post_network.0.norm1.weight"),
        (network.mean_block.mlp[3].bias, "post_network.0.mlp.fc2.bias"),
    ):
        assert set(ours.flatten().tolist()) == {theirs[name].max().item()}, name
