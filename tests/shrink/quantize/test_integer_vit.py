"""Integer operators against their exact forms, and the integer transformer against its original."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveal.shrink.quantize.integer import dyadic, exponential, gelu, normalized, rescale, softmax, square_root
from foveal.shrink.quantize.integer_vit import IntegerOnly, tiny_vit


@pytest.mark.parametrize("ratio", [1e-7, 0.3, 0.999999, 1.0, 5e3])
def test_ratios_as_a_product_and_a_shift(ratio: float):
    m, n = dyadic(ratio)
    assert 2**15 <= m < 2**16
    assert m / 2**n == pytest.approx(ratio, rel=2**-15)
    with pytest.raises(ValueError, match="a ratio of scales must be positive and finite, got nan"):
        dyadic(float("nan"))


def test_rescaling_rounds_and_clamps():
    q = torch.tensor([[100, -100, 5], [3, 1000, -9000]])
    assert rescale(q, 0.5, bits=8).tolist() == [[50, -50, 3], [2, 127, -127]]
    assert rescale(q, torch.tensor([1.0, 0.25, 2.0]), bits=8, signed=False).tolist() == [[100, 0, 10], [3, 250, 0]]
    assert rescale(torch.tensor([3]), 4.0, bits=8).tolist() == [12]


def test_non_linear_operators_are_close_to_the_exact_ones():
    x = 3 * torch.randn(7, 63, generator=torch.Generator().manual_seed(1))
    q, scale = (x / 2e-4).round().long(), 2e-4
    value, unit = exponential((q - q.max()), scale)
    assert float((value * unit - (x - x.max()).exp()).abs().max()) < 0.004
    shares, unit = softmax(q, scale)
    assert shares.dtype == torch.int64
    assert int(shares.min()) >= 0
    assert int(shares.max()) <= 255
    assert float((shares * unit - x.softmax(-1)).abs().max()) < 0.004
    value, unit = gelu((x / 0.005).round().long(), 0.005)
    assert int(value.abs().max()) < 2**31
    assert float((value * unit - F.gelu(x)).abs().max()) < 0.025
    value, unit = normalized((x / 1e-3).round().long())
    assert float((value * unit - F.layer_norm(x, (63,))).abs().max()) < 0.01
    assert not normalized(torch.full((2, 5), 9))[0].any()
    with pytest.raises(ValueError, match="the exponential needs a scale of at most ln 2, got 1; use more bits"):
        exponential(q, 1.0)


def test_square_roots_are_exact():
    q = torch.cat([torch.arange(70), torch.tensor([2**40 - 1, 2**40, 2**51 + 12345])])
    root = square_root(q)
    assert (root**2 <= q).all()
    assert ((root + 1) ** 2 > q).all()


def test_the_twin_computes_in_integers_what_the_original_does():
    model, x = tiny_vit(), torch.randn(8, 3, 8, 8)
    before = [p.clone() for p in model.parameters()]
    twin = IntegerOnly().apply(model, x)
    assert not list(twin.parameters())
    assert all(b.dtype in (torch.int8, torch.int64, torch.float64) for b in twin.buffers())
    with torch.no_grad():
        want = model(x)
    assert float((twin(x) - want).abs().max()) < 0.04 * float(want.abs().max())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    seen = []
    for layer in twin.layers.values():
        layer.register_forward_hook(lambda _, inputs, out: seen.append((inputs[0], out)))
    twin(x)
    assert len(seen) == 9
    assert all(a.dtype == out.dtype == torch.int64 and int(a.abs().max()) <= 127 for a, out in seen)
    assert all(int(out.abs().max()) < 2**31 for _, out in seen)


def test_what_it_refuses():
    from timm.models.vision_transformer import VisionTransformer

    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        IntegerOnly(limit=0)
    with pytest.raises(ValueError, match=r"IntegerOnly takes a timm VisionTransformer .*, got Linear; build it with"):
        IntegerOnly().apply(nn.Linear(2, 2), torch.randn(1, 2))
    with_class = VisionTransformer(img_size=8, patch_size=4, embed_dim=16, depth=1, num_heads=2)
    with pytest.raises(ValueError, match="class_token=False, global_pool='avg'"):
        IntegerOnly().apply(with_class, torch.randn(1, 3, 8, 8))
