import pytest
import torch

from foveal.evidence.models.sequence.long_conv import Moved
from foveal.models.sequence.long_conv import LongConv, longconv_classifier, squash, starting_kernel
from foveal.ops.long_conv import long_conv


def test_squash_by_hand():
    weights = torch.tensor([-3.0, -0.5, 0.0, 0.5, 3.0], requires_grad=True)
    assert squash(weights, 1.0).tolist() == [-2, 0, 0, 0, 2]
    squash(weights, 1.0).sum().backward()
    assert weights.grad.tolist() == [1, 0, 0, 0, 1]


def test_starts():
    torch.manual_seed(0)
    assert 0.0019 < starting_kernel("random", 2, 16, 500).std() < 0.0021
    decaying = starting_kernel("double_exp", 1, 64, 1000)[0]
    # The last channel decays C/2 times as fast as the first, which loses a factor e over the kernel.
    assert 0.3 < decaying[0, -100:].std() / decaying[0, :100].std() < 0.5
    assert decaying[-1, 500:].abs().max() < 1e-6


@pytest.mark.parametrize("bidirectional", [False, True])
def test_is_the_direct_sum_with_squashed_weights(bidirectional):
    torch.manual_seed(0)
    layer = LongConv(3, max_length=30, heads=2, threshold=0.01, bidirectional=bidirectional).double().eval()
    x = torch.randn(2, 3, 25, dtype=torch.float64)
    kernel = layer.kernel()
    torch.testing.assert_close(kernel, layer.weights.sign() * (layer.weights.abs() - 0.01).clamp(min=0))
    direct = long_conv(x, kernel[:2], layer.skip, reverse=kernel[2:] if bidirectional else None, backend="reference")
    torch.testing.assert_close(layer(x), layer.out(direct.flatten(1, 2)), rtol=0, atol=1e-12)


def test_weights_are_dropped_in_training_only():
    layer = LongConv(8, max_length=200, threshold=0.0, kernel_dropout=0.5, init="random")
    assert 0.4 < (layer.kernel() == 0).float().mean() < 0.6
    assert (layer.eval().kernel() != 0).all()


@pytest.mark.parametrize("length", [1, 2, 45, 64])
def test_butterflies_start_as_the_fourier_transform(length):
    torch.manual_seed(0)
    plain = LongConv(3, max_length=length, heads=2).double().eval()
    learned = LongConv(3, max_length=length, heads=2, learned=True).double().eval()
    assert learned.load_state_dict(plain.state_dict(), strict=False).unexpected_keys == []
    x = torch.randn(2, 3, length, dtype=torch.float64)
    # Float32 cosines were converted.
    torch.testing.assert_close(learned(x), plain(x), rtol=0, atol=1e-5)


def test_butterflies_get_gradients():
    layer = LongConv(2, max_length=20, learned=True)
    layer(torch.randn(1, 2, 20)).square().mean().backward()
    assert len(layer.matrices) >= 1
    assert all(matrix.grad.abs().max() > 0 for matrix in layer.matrices.values())


@pytest.mark.parametrize("backend", ["butterfly2", "butterfly3"])
def test_backends_agree(backend):
    torch.manual_seed(0)
    one = longconv_classifier(in_channels=1, dim=4, depth=2, max_length=35).eval()
    other = longconv_classifier(in_channels=1, dim=4, depth=2, max_length=35, backend=backend).eval()
    other.load_state_dict(one.state_dict())
    x = torch.rand(2, 1, 5, 7)
    torch.testing.assert_close(one(x), other(x))


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"threshold": -0.1}, "threshold must be at least 0, got -0.1"),
        ({"init": "zeros"}, "init must be one of random, double_exp, got 'zeros'"),
        (
            {"learned": True, "bidirectional": True},
            "learned butterflies are causal; set only one of learned and bidirectional",
        ),
    ],
)
def test_wrong_arguments(wrong, text):
    with pytest.raises(ValueError, match=text):
        LongConv(4, **wrong)


def test_learned_butterflies_have_one_length():
    with pytest.raises(ValueError, match="take sequences of 16, got 12; build the layer with max_length=12"):
        LongConv(4, max_length=16, learned=True)(torch.zeros(1, 4, 12))


def test_bytes_are_counted_of_operations_not_of_views():
    x = torch.zeros(3, 5)
    with Moved() as counted:
        x.t()[1:].flatten(0)
        assert counted.total == 2 * 4 * 12  # a transposed part is copied to be flattened
        counted.total = 0
        x.view(15)
        assert counted.total == 0
        torch.outer(x[0], x[:, 0])
    assert counted.total == 4 * (5 + 3 + 15)


@pytest.mark.slow
def test_butterflies_run_in_onnx_runtime(tmp_path):
    """At one size of picture; torch.fft does not get there, ONNX has no complex numbers."""
    import onnxruntime

    network = longconv_classifier(in_channels=1, dim=4, depth=1, max_length=35, backend="butterfly2").eval()
    x, path = torch.rand(1, 1, 5, 7), tmp_path / "network.onnx"
    torch.onnx.export(network, (x,), dynamo=True, verbose=False).save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(out), network(x).detach())
