import pytest
import torch
from torch import nn

from foveal.evidence.rivals.segmenters import segmenter_cnn, segmenter_vit


@pytest.mark.parametrize("build", [segmenter_cnn, segmenter_vit])
@pytest.mark.parametrize("size", [(32, 48), (20, 28)])
def test_logits_of_a_quarter_of_the_size(build, size):
    torch.manual_seed(0)
    model = build(dims=(4, 8, 12), dim=6, num_classes=3)
    y = model(torch.randn(2, 3, *size))
    assert y.shape == (2, 3, size[0] // 4, size[1] // 4)
    y.square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("build", [segmenter_cnn, segmenter_vit])
def test_stages_halve_the_map_and_can_be_called_alone(build):
    model, x = build(dims=(4, 8, 12), dim=6).eval(), torch.randn(1, 3, 32, 48)
    shapes = []
    for stage in model.stages:
        x = stage(x)
        shapes.append(tuple(x.shape))
    assert shapes == [(1, 4, 8, 12), (1, 8, 4, 6), (1, 12, 2, 3)]


def test_only_the_transformer_sees_the_whole_picture_in_its_first_stage():
    torch.manual_seed(0)
    x = torch.randn(1, 3, 64, 64, requires_grad=True)
    seen = []
    for build in (segmenter_cnn, segmenter_vit):
        stage = build().eval().stages[0]
        (gradient,) = torch.autograd.grad(stage(x)[0, :, 0, 0].square().sum(), x)
        seen.append(bool(gradient[..., -1, -1].any()))
    assert seen == [False, True]


def test_attention_is_the_formula():
    torch.manual_seed(0)
    block = segmenter_vit(dims=(4, 8, 12)).stages[2][2]
    assert (block.num_heads, block.reduce) == (4, 1)
    for layer in (block.down, block.proj):
        nn.init.zeros_(layer.bias)
    nn.init.zeros_(block.down.weight)  # without the MLP
    x = torch.randn(1, 12, 3, 5)
    y = block.norm1(x)
    k, v = block.kv(y).flatten(2).chunk(2, 1)
    q, heads = block.q(y).flatten(2), []
    for head in range(4):
        part = slice(3 * head, 3 * head + 3)
        attention = (q[:, part].mT @ k[:, part] / 3**0.5).softmax(-1)
        heads.append(v[:, part] @ attention.mT)
    torch.testing.assert_close(block(x), x + block.proj(torch.cat(heads, 1).view(1, 12, 3, 5)))
