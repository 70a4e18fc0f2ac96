from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from timm.models.fastvit import ReparamLargeKernelConv
from timm.utils.model import reparameterize_model
from torch import nn

from foveal.evidence.models.backbone.ffnet import attending, ffnified, others
from foveal.models.backbone.ffnet import (
    FFNet,
    FFNifiedAttention,
    ffnet_1,
    ffnified_attention,
    ffnified_attention_reference,
    from_authors,
)

SMALL = {"dims": (6, 12), "depths": (1, 2), "mixer_kernels": (3, 7), "channel_kernels": (7, 3), "num_classes": 5}


@torch.no_grad()
def drawn(model):
    """All weights and statistics drawn: at their initial values γ would hide what is merged."""
    torch.manual_seed(0)
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif "num_batches" not in name:
            value.normal_(std=0.3 if value.ndim == 1 else value[0].numel() ** -0.5)
    return model.eval()


@pytest.mark.parametrize(("size", "kernel"), [((1, 1), 7), ((5, 8), 3), ((9, 7), 7)])
def test_it_is_attention_with_gelu(size, kernel):
    torch.manual_seed(0)
    inputs = [torch.randn(2, 3, *size), torch.randn(3, 1, kernel, kernel), torch.randn(3, 1, kernel, kernel)]
    inputs = [value.double().requires_grad_() for value in inputs]
    found, wanted = ffnified_attention(*inputs), ffnified_attention_reference(*inputs)
    torch.testing.assert_close(found, wanted)
    gradients = [torch.autograd.grad(out.square().sum(), inputs) for out in (found, wanted)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("function", [ffnified_attention, ffnified_attention_reference])
def test_a_pattern_that_is_found_writes_its_value(function):
    torch.manual_seed(0)
    pattern, value = torch.randn(3, 3), torch.randn(3, 3)
    query = torch.zeros(1, 1, 11, 11)
    query[0, 0, 4:7, 4:7] = 10 * pattern  # far from 0, where GELU is the identity or nothing
    out = function(query, pattern[None, None], value[None, None])
    written = F.gelu(F.conv2d(query, pattern[None, None], padding=1))
    assert written[0, 0, 5, 5] == written.max()
    torch.testing.assert_close(written[0, 0, 5, 5], 10 * pattern.square().sum())
    expected = sum(written[0, 0, 5 + i, 5 + j] * value[1 + i, 1 + j] for i in (-1, 0, 1) for j in (-1, 0, 1))
    torch.testing.assert_close(out[0, 0, 5, 5], expected)


def test_keys_of_zero_write_nothing():
    assert ffnified_attention(torch.randn(1, 2, 5, 5), torch.zeros(2, 1, 3, 3), torch.randn(2, 1, 3, 3)).eq(0).all()


def test_merged_the_module_is_the_function_of_its_query():
    torch.manual_seed(0)
    mixer = drawn(FFNifiedAttention(4))
    x = torch.randn(2, 4, 9, 8)
    merged = reparameterize_model(mixer)
    keys, values = merged.keys.reparam_conv, merged.values.reparam_conv
    nn.init.zeros_(keys.bias)
    nn.init.zeros_(values.bias)
    wanted = ffnified_attention(merged.query(x), keys.weight, values.weight)
    torch.testing.assert_close(merged(x), wanted)


def test_branches_and_norms_merge():
    model = drawn(FFNet(**SMALL, layer_scale=0.5, stem_width=4))
    x = torch.randn(2, 3, 40, 33)
    merged = reparameterize_model(model)
    torch.testing.assert_close(merged(x), model(x), rtol=1e-4, atol=1e-5)
    assert [type(module) for module in merged.modules()].count(nn.BatchNorm2d) == 1  # the last norm, before pooling
    assert type(merged.stages[1][1]) is nn.Conv2d


def test_kernels_by_stage():
    model = FFNet(**SMALL)
    large = [
        (type(block[0].main.keys) is ReparamLargeKernelConv, type(block[1].main.local) is ReparamLargeKernelConv)
        for block in (model.stages[0][0], model.stages[1][2], model.stages[1][3])
    ]
    assert large == [(False, True), (True, False), (True, False)]


def test_a_block_with_factors_of_zero_passes_on():
    block = drawn(FFNet(**SMALL, layer_scale=0.0)).stages[0][0]
    for part in block:
        nn.init.zeros_(part.scale)
    x = torch.randn(2, 6, 5, 4)
    assert torch.equal(block(x), x)


def test_maps_halve():
    torch.manual_seed(0)
    last, maps = FFNet(**SMALL).eval().forward_intermediates(torch.randn(2, 3, 33, 48))
    assert [tuple(one.shape[1:]) for one in maps] == [(6, 9, 12), (12, 5, 6)]
    assert last.shape == maps[-1].shape


def test_names_of_the_authors():
    model = ffnet_1(dims=(4, 8), depths=(1, 1), mixer_kernels=(3, 7), channel_kernels=(3, 7), layer_scale=1.0)
    theirs = ["patch_embed.2.c.weight", "norm.weight", "head.bias"]
    theirs += [f"stages.0.0.token_mixer.0.{name}" for name in ("layer_scale", "main.fc.c.weight", "main.conv2.bias")]
    theirs += [f"stages.0.0.channel_mixer.{name}" for name in ("layer_scale", "main.conv.bn.bias", "main.fc1.weight")]
    theirs += [f"stages.1.0.proj.{name}" for name in ("0.conv.c.weight", "0.conv1.bn.bias", "1.conv.bn.weight")]
    theirs += ["stages.1.0.proj.1.conv.c.weight", "stages.1.1.token_mixer.0.main.conv1.conv1.c.weight"]
    theirs += ["stages.1.1.channel_mixer.main.conv.conv.bn.running_mean"]
    found = from_authors(dict.fromkeys(theirs))
    assert len(found) == len(theirs)
    assert set(found) <= set(model.state_dict())


def test_a_file_with_softmax_is_told_apart():
    plain = Counter(Conv=3, Erf=1, Mul=2, Add=1, Div=1)
    assert others(plain) == 0
    assert others(plain + Counter(Softmax=1, MatMul=2)) == 3
    assert others(plain + Counter(Conv=1)) == 9
    assert others(Counter()) == 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"depths": (1,)}, "must have the same length, got 2, 1, 2, 2"),
        ({"dims": (6, 10)}, r"twice the channels of the one before, got dims \(6, 10\)"),
        ({"mixer_kernels": (3, 6)}, "kernels must be odd, got 6; take 7"),
        ({"channel_kernels": (4, 3)}, "kernels must be odd, got 4; take 5"),
    ],
)
def test_sizes(options, text):
    with pytest.raises(ValueError, match=text):
        FFNet(**{**SMALL, **options})


def test_an_even_kernel_raises():
    with pytest.raises(ValueError, match="kernel_size must be odd, got 2; take 3"):
        FFNifiedAttention(4, kernel_size=2)


def test_the_attention_version_differs_in_its_mixers_only():
    x = torch.randn(2, 3, 32, 32)
    networks = [build().eval() for build in (ffnified, attending)]
    assert all(network(x).shape == (2, 10) for network in networks)
    names = [{name for name in network.state_dict() if "mixer" not in name} for network in networks]
    assert names[0] == names[1]
    shifts = [block.mixer.attention.shift for stage in (networks[1].stage1, networks[1].stage2) for block in stage]
    assert shifts == [(0, 0), (4, 4), (0, 0), (0, 0)]
