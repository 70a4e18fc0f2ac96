import itertools

import pytest
import torch

from foveal.models.sequence.sgconv import SGConv, multi_scale_kernel, scales, sgconv_classifier
from foveal.ops.long_conv import long_conv


def test_scales_reach_over_the_sequence():
    assert [scales(length, 64) for length in (1, 64, 65, 128, 1000, 1024, 65536)] == [1, 1, 2, 2, 5, 5, 11]


def test_a_doubling_costs_d_weights():
    counts = [sum(w.numel() for w in SGConv(1, max_length=2**i, kernel_size=16).weights) for i in range(4, 15)]
    assert counts == [16 * i for i in range(1, 12)]


def test_kernel_by_hand():
    one = torch.ones(1, 1, 2)
    kernel = multi_scale_kernel([one, one, 2 * one, torch.tensor([[[0.0, 8.0]]])])
    # ½·1 and ¼·2 and ⅛·(0, 8), stretched to 2, 4 and 8 places; linear between the middles of the stretched weights.
    assert kernel[0, 0, :8].tolist() == [1, 1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    assert kernel[0, 0, 8:].tolist() == [0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1]


def test_a_new_kernel_has_norm_one_and_decays():
    torch.manual_seed(0)
    layer = SGConv(64, max_length=512, kernel_size=16, heads=2)
    kernel = layer.kernel()
    assert kernel.shape == (2, 64, 512)
    torch.testing.assert_close(kernel.norm(dim=-1), torch.ones(2, 64))
    sizes = [part.square().mean().sqrt() for part in kernel.split([16, 16, 32, 64, 128, 256], -1)]
    assert all(after < 0.6 * before for before, after in itertools.pairwise(sizes))


def test_the_norm_is_kept_when_the_weights_grow():
    layer = SGConv(2, max_length=32, kernel_size=4)
    before = layer.kernel()
    with torch.no_grad():
        for weights in layer.weights:
            weights.mul_(3)
    torch.testing.assert_close(layer.kernel(), 3 * before)
    assert "norm" in layer.state_dict()


@pytest.mark.parametrize("bidirectional", [False, True])
def test_causal_unless_asked(bidirectional):
    torch.manual_seed(0)
    layer = SGConv(3, max_length=24, kernel_size=4, heads=2, bidirectional=bidirectional).double()
    x = torch.randn(1, 3, 20, dtype=torch.float64)
    moved = torch.cat([x[..., :9], x[..., 9:] + 1], -1)
    same = torch.allclose(layer(x)[..., :9], layer(moved)[..., :9], rtol=0, atol=1e-12)
    assert same != bidirectional


def test_is_the_direct_sum():
    torch.manual_seed(0)
    layer, x = SGConv(3, max_length=100, kernel_size=8).double(), torch.randn(2, 3, 75, dtype=torch.float64)
    direct = long_conv(x, layer.kernel(), layer.skip, backend="reference")
    torch.testing.assert_close(layer(x), layer.out(direct[:, 0]), rtol=0, atol=1e-12)


def test_classifier():
    network = sgconv_classifier(in_channels=1, num_classes=3, dim=4, depth=2, max_length=16, kernel_size=4).eval()
    assert network(torch.rand(2, 1, 5, 7)).shape == (2, 3)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"kernel_size": 0}, "kernel_size must be at least 1, got 0"),
        ({"decay": 0.0}, r"decay must be in \(0, 1\], got 0.0"),
    ],
)
def test_wrong_arguments(wrong, text):
    with pytest.raises(ValueError, match=text):
        SGConv(4, **wrong)
