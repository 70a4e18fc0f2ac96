import pytest
import torch

from foveal.evidence.models.backbone.a2mamba import gathered, stacked
from foveal.models.backbone.a2mamba import (
    A2Mamba,
    a2mamba_b,
    a2mamba_l,
    a2mamba_n,
    a2mamba_s,
    a2mamba_t,
    from_authors,
)

TINY = {"dims": (8, 16), "depths": (1, 1), "num_heads": (2, 4)}


def test_the_comparison_has_power():
    """The two sides of the claim begin with the same weights, and states decide what they answer."""
    sides = []
    for build in (gathered, stacked):
        torch.manual_seed(0)
        sides.append(build())
    for ours, theirs in zip(sides[0].parameters(), sides[1].parameters(), strict=True):
        assert torch.equal(ours, theirs)
    x = torch.randn(16, 3, 32, 32)
    with torch.no_grad():
        first, second = (model.train()(x) for model in sides)
    assert (first - second).std(0).mean() > 0.2 * second.std(0).mean()


@pytest.mark.parametrize("size", [(32, 32), (57, 41), (5, 70)])
def test_any_size(size):
    model = a2mamba_n(**TINY, num_classes=4).eval()
    maps = model.forward_intermediates(torch.rand(1, 3, *size), intermediates_only=True)
    assert [m.shape[1] for m in maps] == [8, 16]
    assert model(torch.rand(1, 3, *size)).shape == (1, 4)


def test_the_head_projects_before_it_pools():
    model = a2mamba_n(**TINY, num_classes=4).eval()
    x = model.forward_features(torch.rand(2, 3, 16, 16))
    assert model.forward_head(x, pre_logits=True).shape == (2, 1024)
    model.reset_classifier(0)
    assert model.forward_head(x).shape == (2, 1024)
    assert model.get_classifier() is model.head


def test_only_the_last_stage_attends_to_all():
    model = A2Mamba((8, 16), (2, 1), (2, 2))
    assert [any(hasattr(m, "bias_all") for m in stage.modules()) for stage in model.stages] == [False, True]
    model = A2Mamba((8, 16), (2, 1), (2, 2), attend_all=False)
    assert not any(hasattr(m, "bias_all") for m in model.modules())


def test_stages_scale_their_shortcut_or_their_branch():
    torch.manual_seed(0)
    model = a2mamba_s(dims=(8, 8, 8), depths=(1, 1, 1), num_heads=(2, 2, 2))
    assert [stage[-1].shortcut for stage in model.stages] == [False, False, True]
    block, x = model.stages[2][-1].eval(), torch.randn(1, 8, 3, 3)
    before = block(x)
    with torch.no_grad():
        block.scale2.weight.zero_()
    assert (block(x) - before).abs().max() > 0.1
    model = A2Mamba((8,), (1,), (2,), scaled=("branch",), scale_start=(0.0,))
    block = model.stages[0][-1].eval()
    with torch.no_grad():
        for conv in (block.local1, block.local2):
            conv.weight.zero_()
    assert torch.equal(block(x), x)


def authors(dims, depths, heads, ratios=(4, 4, 3, 3), scaled=(), classes=1000):
    """Names and shapes in LMMMEng/A2Mamba (commit a9ea14c), models/a2mamba.py."""

    def layer(name, *shape, bias=True):
        return {f"{name}.weight": shape, **({f"{name}.bias": shape[:1]} if bias else {})}

    def norm(name, width):  # a batch norm
        more = {f"{name}.running_mean": (width,), f"{name}.running_var": (width,), f"{name}.num_batches_tracked": ()}
        return layer(name, width) | more

    half, found = dims[0] // 2, {}
    for i, (outputs, inputs) in enumerate(((half, 3), (half, half), (dims[0], half), (dims[0], dims[0]))):
        found |= layer(f"patch_embed.{3 * i}", outputs, inputs, 3, 3, bias=False)
        found |= norm(f"patch_embed.{3 * i + 1}", outputs)
    for i, (width, depth, count, window) in enumerate(zip(dims, depths, heads, (11, 9, 7, 7), strict=True)):
        hidden, rank, side = int(ratios[i] * width), -(-width // 16), 2 * window - 1
        found |= {f"layers.{2 * i}.rope.angle": (width // count // 4 * 2,)}
        for at in (f"layers.{2 * i}.blocks.{j}" for j in range(depth)):
            mixer = f"{at}.token_mixer"
            for k in (1, 2):
                found |= layer(f"{at}.cpe{k}", width, 1, 3, 3) | layer(f"{at}.norm{k}", width)
                if i in scaled:
                    found |= {f"{at}.layer_scale{k}.weight": (width, 1, 1, 1), f"{at}.layer_scale{k}.bias": (width,)}
                found |= {f"{mixer}.rpb.{k - 1}": (count // 2, side, side)}
            found |= layer(f"{mixer}.qkv", 3 * width, width, 1, 1) | layer(f"{mixer}.gate.0", width, width, 1, 1)
            found |= norm(f"{mixer}.gate.1", width) | layer(f"{mixer}.lepe", width, 1, 5, 5)
            found |= layer(f"{mixer}.norm", width) | layer(f"{mixer}.proj.0", width)
            found |= layer(f"{mixer}.proj.1", width, width, 1, 1)
            if i == 3:
                found |= {f"{mixer}.rpb.2": (1, count, 49, 49)}
            else:
                found |= layer(f"{mixer}.ssm.conv2d", width, 1, 5, 5)
                found |= {f"{mixer}.ssm.x_proj_weight": (rank + 2, width)}
                found |= {f"{mixer}.ssm.dt_projs_weight": (width, rank), f"{mixer}.ssm.dt_projs_bias": (width,)}
                found |= {f"{mixer}.ssm.A_logs": (width, 1), f"{mixer}.ssm.Ds": (width,)}
                found |= layer(f"{mixer}.ssm.state_fusion", count, count, 1, 1)
            found |= layer(f"{at}.mlp.fc1", hidden, width, 1, 1) | layer(f"{at}.mlp.dwconv", hidden, 1, 3, 3)
            found |= layer(f"{at}.mlp.fc2", width, hidden, 1, 1)
        if i < 3:
            found |= layer(f"layers.{2 * i + 1}.0", dims[i + 1], width, 3, 3, bias=False)
            found |= norm(f"layers.{2 * i + 1}.1", dims[i + 1])
    found |= layer("classifier.0", 1024, width, 1, 1) | norm("classifier.1", 1024)
    return found | layer("classifier.4", classes, 1024, 1, 1)


EVERY, LATER, WIDE = (0, 1, 2, 3), (2, 3), (4, 4, 3.75, 3.75)


@pytest.mark.parametrize(
    ("build", "dims", "heads", "more"),
    [
        (a2mamba_n, (32, 64, 128, 192), (2, 2, 4, 8), {}),
        (a2mamba_t, (48, 96, 256, 448), (2, 4, 8, 16), {}),
        (a2mamba_s, (64, 128, 320, 512), (2, 4, 10, 16), {"scaled": LATER}),
        (a2mamba_b, (96, 192, 384, 512), (4, 8, 12, 16), {"scaled": EVERY, "ratios": WIDE}),
        (a2mamba_l, (96, 192, 448, 672), (4, 8, 16, 24), {"scaled": EVERY, "ratios": (4, 4, 4, 4)}),
    ],
)
def test_weights_of_the_authors_load(build, dims, heads, more):
    depths = (1, 1, 1, 1)  # whole networks take seconds to build
    with torch.device("meta"):
        theirs = {name: torch.empty(shape) for name, shape in authors(dims, depths, heads, **more).items()}
        build(depths=depths).load_state_dict(from_authors(theirs), assign=True)


def test_each_weight_of_the_authors_finds_its_place():
    sizes = {"dims": (8, 8, 16, 16), "depths": (1, 1, 2, 1)}
    shapes = authors(**sizes, heads=(2, 2, 2, 2), scaled=(2, 3), classes=3)
    theirs = {name: torch.full(shape, float(i)) for i, (name, shape) in enumerate(shapes.items())}
    model = a2mamba_s(**sizes, num_heads=(2, 2, 2, 2), num_classes=3, mlp_ratios=(4, 4, 3, 3))
    model.load_state_dict(from_authors(theirs))
    block, at = model.stages[2][3], "layers.4.blocks.1"
    for ours, name in (
        (block.local2.bias, f"{at}.cpe2.bias"),
        (block.mixer.local.bias, f"{at}.token_mixer.lepe.bias"),
        (block.mixer.bias, f"{at}.token_mixer.rpb.0"),
        (block.mixer.conv.bias, f"{at}.token_mixer.ssm.conv2d.bias"),
        (block.mixer.ssm.s6.dt_bias, f"{at}.token_mixer.ssm.dt_projs_bias"),
        (block.mixer.heads.bias, f"{at}.token_mixer.ssm.state_fusion.bias"),
        (block.scale1.weight, f"{at}.layer_scale1.weight"),
        (block.mlp.local.bias, f"{at}.mlp.dwconv.bias"),
        (model.stages[3][1].running_var, "layers.5.1.running_var"),
        (model.stages[3][2].mixer.bias_all, "layers.6.blocks.0.token_mixer.rpb.2"),
        (model.projection[1].bias, "classifier.1.bias"),
        (model.head.weight, "classifier.4.weight"),
    ):
        assert torch.equal(ours.flatten(), theirs[name].flatten()), name
