import pytest
import torch
import torch.nn.functional as F
from released import same_names_and_shapes, with_batch_norms
from torch import nn

from foveal.models.backbone.spatial_mamba import (
    SpatialMamba,
    StateFusion,
    StructureAwareMixer,
    from_authors,
    repeat_border,
    spatial_mamba_tiny,
)


@pytest.mark.parametrize("size", [(12, 9), (3, 4), (1, 1)])
def test_fusion_is_three_convolutions_over_a_repeated_border(size):
    torch.manual_seed(0)
    fusion, h = StateFusion(4), torch.randn(2, 4, *size)
    for parameter in fusion.parameters():
        nn.init.normal_(parameter)
    want = sum(
        fusion.alpha[i] * F.conv2d(F.pad(h, (d,) * 4, mode="replicate"), fusion.kernels[i], dilation=d, groups=4)
        for i, d in enumerate((1, 3, 5))
    )
    torch.testing.assert_close(fusion(h), want, rtol=0, atol=1e-5)
    # one convolution
    torch.testing.assert_close(fusion.eval()(h), want, rtol=0, atol=1e-5)
    fusion.as_one = False
    assert torch.equal(fusion(h), fusion.train()(h))


def test_fusion_begins_as_a_sum_and_can_be_made_the_identity():
    fusion, h = StateFusion(2), torch.rand(1, 2, 6, 7)
    torch.testing.assert_close(fusion(torch.ones_like(h)), torch.full_like(h, 27))
    fusion.make_identity_()
    assert torch.equal(fusion(h), h)


@pytest.mark.parametrize("size", [(32, 32), (57, 41), (5, 70)])
def test_any_size(size):
    model = spatial_mamba_tiny(dim=8, depths=(1, 1), num_classes=4).eval()
    assert model(torch.rand(1, 3, *size)).shape == (1, 4)


def test_another_mixer_takes_its_place():
    model = SpatialMamba(dim=8, depths=(1, 1), mixer=lambda dim: nn.Conv2d(dim, dim, 1))
    assert not any(isinstance(m, StructureAwareMixer) for m in model.modules())


def test_later_positions_reach_earlier_ones_through_the_fusion_alone():
    torch.manual_seed(0)
    mixer, x = StructureAwareMixer(4).eval(), torch.randn(1, 4, 9, 9, requires_grad=True)
    for fused in (True, False):
        if not fused:
            mixer.fusion.make_identity_()
        x.grad = None
        mixer(x)[..., 2, 2].sum().backward()
        # the depthwise convolution sees one row further, the fusion five
        assert bool(x.grad[0, :, 6, 2].abs().max() > 0) is fused


@pytest.mark.parametrize("size", [(1, 1), (4, 7), (1, 9)])
def test_the_border_is_repeated_as_torch_does_it(size):
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    ours, theirs = repeat_border(x, 5), F.pad(x, (5,) * 4, mode="replicate")
    assert torch.equal(ours, theirs)
    weights = torch.randn_like(ours)
    found, wanted = (torch.autograd.grad((padded * weights).sum(), x)[0] for padded in (ours, theirs))
    torch.testing.assert_close(found, wanted)


def backward_nodes(tensor):
    """Names of the functions that the gradient of a tensor passes through."""
    names, waiting = set(), [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in names:
            names.add(node)
            waiting += [after for after, _ in node.next_functions]
    return {node.name() for node in names}


@pytest.mark.parametrize("training", [True, False])
def test_gradients_avoid_what_inductor_gets_wrong(training):
    """inductor lays out the result of torch's replication_pad2d_backward otherwise than torch does, and stops."""
    assert "ReplicationPad2DBackward0" in backward_nodes(
        F.pad(torch.ones(1, 1, 2, 2, requires_grad=True), (1,) * 4, mode="replicate")
    )
    fusion = StateFusion(2).train(training)
    assert "ReplicationPad2DBackward0" not in backward_nodes(fusion(torch.rand(1, 2, 6, 7, requires_grad=True)))


@pytest.mark.slow
def test_fusion_trains_compiled():
    torch.manual_seed(0)
    fusion, h = StateFusion(4), torch.randn(2, 4, 9, 7)
    found = []
    for run in (fusion, torch.compile(fusion)):
        x = h.clone().requires_grad_()
        found.append(torch.autograd.grad(run(x).square().sum(), [x, *fusion.parameters()]))
    for plain, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-3)


def test_channels_last_changes_nothing():
    torch.manual_seed(0)
    model, x = spatial_mamba_tiny(dim=8, depths=(1, 1), num_classes=4).eval(), torch.rand(2, 3, 33, 47)
    want = model(x)
    model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x), want, rtol=1e-4, atol=1e-5)
    model.train()(x).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def authors(dim, depths, classes=1000):
    """Names and shapes in EdwardChasel/Spatial-Mamba, `SpatialMamba`; a number stands for a batch norm of so many."""
    half = dim // 2
    found = {
        "patch_embed.conv1.conv.weight": (half, 3, 3, 3),
        "patch_embed.conv1.norm": half,
        "patch_embed.conv2.0.conv.weight": (half, half, 3, 3),
        "patch_embed.conv2.0.norm": half,
        "patch_embed.conv2.1.conv.weight": (half, half, 3, 3),
        "patch_embed.conv2.1.norm": half,
        "patch_embed.conv3.0.conv.weight": (4 * dim, half, 3, 3),
        "patch_embed.conv3.0.norm": 4 * dim,
        "patch_embed.conv3.1.conv.weight": (dim, 4 * dim, 1, 1),
        "patch_embed.conv3.1.norm": dim,
    }
    for i, depth in enumerate(depths):
        width, inner, rank = dim << i, 2 * (dim << i), -(-(dim << i) // 16)
        block = {
            "cpe1.weight": (width, 1, 3, 3),
            "cpe1.bias": (width,),
            "ln_1.weight": (width,),
            "ln_1.bias": (width,),
            "self_attention.in_proj.weight": (2 * inner, width),
            "self_attention.conv2d.weight": (inner, 1, 3, 3),
            "self_attention.conv2d.bias": (inner,),
            "self_attention.x_proj_weight": (rank + 2, inner),
            "self_attention.dt_projs_weight": (inner, rank),
            "self_attention.dt_projs_bias": (inner,),
            "self_attention.A_logs": (inner, 1),
            "self_attention.Ds": (inner,),
            "self_attention.state_fusion.kernel_3": (inner, 1, 3, 3),
            "self_attention.state_fusion.kernel_3_1": (inner, 1, 3, 3),
            "self_attention.state_fusion.kernel_3_2": (inner, 1, 3, 3),
            "self_attention.state_fusion.alpha": (3,),
            "self_attention.out_norm.weight": (inner,),
            "self_attention.out_norm.bias": (inner,),
            "self_attention.out_proj.weight": (width, inner),
            "cpe2.weight": (width, 1, 3, 3),
            "cpe2.bias": (width,),
            "ln_2.weight": (width,),
            "ln_2.bias": (width,),
            "mlp.fc1.weight": (4 * width, width),
            "mlp.fc1.bias": (4 * width,),
            "mlp.fc2.weight": (width, 4 * width),
            "mlp.fc2.bias": (width,),
        }
        found |= {f"layers.{i}.blocks.{j}.{name}": shape for j in range(depth) for name, shape in block.items()}
        if i < len(depths) - 1:
            down, wide = f"layers.{i}.downsample.conv", 8 * width
            found |= {
                f"{down}.0.conv.weight": (wide, width, 1, 1),
                f"{down}.0.conv.bias": (wide,),
                f"{down}.1.conv.weight": (wide, 1, 3, 3),
                f"{down}.1.conv.bias": (wide,),
                f"{down}.2.conv.weight": (2 * width, wide, 1, 1),
                f"{down}.2.conv.bias": (2 * width,),
                f"{down}.2.norm": 2 * width,
            }
    last = dim << (len(depths) - 1)
    found |= {"norm.weight": (last,), "norm.bias": (last,), "head.weight": (classes, last), "head.bias": (classes,)}
    return with_batch_norms(found)


def test_weights_of_the_authors_load():
    weights = {name: torch.rand(shape) for name, shape in authors(8, (1, 2, 1), 4).items()}
    model = spatial_mamba_tiny(dim=8, depths=(1, 2, 1), num_classes=4)
    model.load_state_dict(from_authors(weights))
    block, prefix = model.stages[1][2], "layers.1.blocks.1"
    for kernel, name in zip(block.mixer.fusion.kernels, ("kernel_3", "kernel_3_1", "kernel_3_2"), strict=True):
        assert torch.equal(kernel, weights[f"{prefix}.self_attention.state_fusion.{name}"])
    assert torch.equal(block.norm2.bias, weights[f"{prefix}.ln_2.bias"])
    assert torch.equal(block.mixer.in_proj.weight[..., 0, 0], weights[f"{prefix}.self_attention.in_proj.weight"])
    assert torch.equal(model.stages[2][0][2].bias, weights["layers.1.downsample.conv.1.conv.bias"])


def test_the_released_tiny_has_the_same_names_and_shapes():
    same_names_and_shapes(spatial_mamba_tiny, from_authors, authors(64, (2, 4, 8, 4)))
