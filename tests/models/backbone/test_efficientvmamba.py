import pytest
import torch

from foveal.models.backbone.efficientvmamba import (
    ES2D,
    EfficientVMamba,
    EVSSBlock,
    InvertedResidual,
    atrous_gather,
    atrous_scatter,
    efficientvmamba_base,
    efficientvmamba_small,
    efficientvmamba_tiny,
    from_authors,
)
from foveal.ops.scan2d import gather, routes


@pytest.mark.parametrize("side", [(1, 1), (1, 4), (5, 2), (6, 4), (7, 9)])
def test_there_and_back(side):
    x = torch.randn(2, 3, *side)
    sequences = atrous_gather(x)
    assert sequences.shape == (2, 4, 3, (side[0] + 1) // 2 * ((side[1] + 1) // 2))
    assert torch.equal(atrous_scatter(sequences, *side), x)
    # and the other way, where nothing was completed by zeros
    if side[0] % 2 == side[1] % 2 == 0:
        noise = torch.randn_like(sequences)
        assert torch.equal(atrous_gather(atrous_scatter(noise, *side)), noise)


@pytest.mark.parametrize("side", [(2, 2), (6, 4), (5, 7)])
def test_the_sequences_are_the_atrous_routes(side):
    x = torch.randn(2, 3, *side)
    assert torch.equal(atrous_gather(x), gather(x.flatten(2), routes("atrous", *side)))


def test_a_token_reaches_its_own_subset_only():
    torch.manual_seed(0)
    mixer, x = ES2D(4, state=2), torch.randn(1, 8, 6, 8)
    changed = x.clone()
    changed[..., 2, 3] += 1
    touched = (mixer.scan(changed) - mixer.scan(x)).abs().sum((0, 1)) > 0
    rows, columns = touched.nonzero().T
    assert set((rows % 2).tolist()) == {0}
    assert set((columns % 2).tolist()) == {1}
    # by rows: everything after it
    assert touched[::2, 1::2].flatten().tolist() == [False] * 5 + [True] * 7


def test_stages_scan_first_and_convolve_last():
    network = EfficientVMamba(dim=8, depths=(1, 2, 3, 1), num_classes=5)
    kinds = [[type(m) for m in stage if isinstance(m, (EVSSBlock, InvertedResidual))] for stage in network.stages]
    assert kinds == [[EVSSBlock], [EVSSBlock] * 2, [InvertedResidual] * 3, [InvertedResidual]]


def test_a_block_gates_both_branches_alike():
    torch.manual_seed(0)
    block, x = EVSSBlock(8, state=1).eval(), torch.randn(2, 8, 5, 3)
    normed = block.norm(x)
    expected = x + block.excite(block.mixer(normed)) + block.excite(block.conv(normed))
    torch.testing.assert_close(block(x), expected)
    torch.nn.init.constant_(block.excite.expand.bias, -100)
    torch.testing.assert_close(block(x), x)


@pytest.mark.parametrize("side", [(33, 40), (70, 57)])
def test_any_size(side):
    network = efficientvmamba_tiny(dim=4, depths=(1, 1, 1, 1), state=1, num_classes=3).eval()
    assert network(torch.rand(1, 3, *side)).shape == (1, 3)


def authors(dim, depths, classes=1000, state=16):
    """Names and shapes in TerryPei/EfficientVMamba (commit 0bc5ee2), `EfficientVSSM` as vssm_efficient_*.yaml say."""

    def layer(name, *shape, bias=True):
        return {f"{name}.weight": shape, **({f"{name}.bias": shape[:1]} if bias else {})}

    def norm(name, width):  # a batch norm
        more = {f"{name}.running_mean": (width,), f"{name}.running_var": (width,), f"{name}.num_batches_tracked": ()}
        return layer(name, width) | more

    found = layer("patch_embed.0", dim, 3, 4, 4) | layer("patch_embed.2", dim)
    for i, depth in enumerate(depths):
        width = dim << i
        inner, hidden, rank = 2 * width, 4 * width, -(-width // 16)
        for j in range(depth):
            at = f"layers.{i}.blocks.{j}" if i < 2 else f"layers.{i}.{j + 1}"
            if i < 2:
                found |= layer(f"{at}.norm", width) | layer(f"{at}.op.out_norm", inner)
                found |= layer(f"{at}.op.in_proj", 2 * inner, width, bias=False)
                found |= layer(f"{at}.op.conv2d", inner, 1, 3, 3)
                found |= {f"{at}.op.x_proj_weight": (4, rank + 2 * state, inner)}
                found |= {f"{at}.op.dt_projs_weight": (4, inner, rank), f"{at}.op.dt_projs_bias": (4, inner)}
                found |= {f"{at}.op.A_logs": (4 * inner, state), f"{at}.op.Ds": (4 * inner,)}
                found |= layer(f"{at}.op.out_proj", width, inner, bias=False)
                found |= layer(f"{at}.conv_branch.0", width, 1, 3, 3) | norm(f"{at}.conv_branch.1", width)
                found |= layer(f"{at}.conv_branch.3", width, width, 1, 1) | layer(f"{at}.se.norm", width)
                found |= layer(f"{at}.se.global_reduce", width // 8, width)
                found |= layer(f"{at}.se.channel_select", width, width // 8)
            else:
                found |= layer(f"{at}.conv_pw.0", hidden, width, 1, 1, bias=False) | norm(f"{at}.conv_pw.1", hidden)
                found |= layer(f"{at}.conv_dw.0", hidden, 1, 3, 3, bias=False) | norm(f"{at}.conv_dw.1", hidden)
                found |= layer(f"{at}.se.conv_reduce", hidden // 8, hidden, 1, 1)
                found |= layer(f"{at}.se.conv_expand", hidden, hidden // 8, 1, 1)
                found |= layer(f"{at}.conv_pw2.0", width, hidden, 1, 1, bias=False) | norm(f"{at}.conv_pw2.1", width)
        if i < len(depths) - 1:
            at = f"layers.{i}.downsample" if i < 2 else f"layers.{i}.{depth + 2}"
            found |= layer(f"{at}.reduction", 2 * width, 4 * width, bias=False) | layer(f"{at}.norm", 4 * width)
    return found | layer("classifier.norm", width) | layer("classifier.head", classes, width)


@pytest.mark.parametrize(
    ("build", "dim", "depths"),
    [
        (efficientvmamba_tiny, 48, (2, 2, 4, 2)),
        (efficientvmamba_small, 64, (2, 2, 4, 2)),
        (efficientvmamba_base, 96, (2, 2, 9, 2)),
    ],
)
def test_weights_of_the_authors_load(build, dim, depths):
    with torch.device("meta"):
        theirs = {f"module.{name}": torch.empty(shape) for name, shape in authors(dim, depths).items()}
        build().load_state_dict(from_authors(theirs), assign=True)


def test_each_weight_of_the_authors_finds_its_place():
    theirs = {name: torch.full(shape, float(i)) for i, (name, shape) in enumerate(authors(8, (1, 2, 2, 1)).items())}
    network = EfficientVMamba(dim=8, depths=(1, 2, 2, 1))
    network.load_state_dict(from_authors(theirs))
    for ours, name in (
        (network.stages[1][2].mixer.s6.A_log, "layers.1.blocks.1.op.A_logs"),
        (network.stages[1][1].excite.norm.weight, "layers.1.blocks.0.se.norm.weight"),
        (network.stages[2][2].branch[4].bias, "layers.2.2.conv_dw.1.bias"),
        (network.stages[2][2].branch[6].fc2.bias, "layers.2.2.se.conv_expand.bias"),
        (network.stages[3][0].reduction.weight, "layers.2.4.reduction.weight"),
    ):
        assert torch.equal(ours.flatten(), theirs[name].flatten()), name
