import math

import pytest
import torch

from foveal.models.sequence.s4d import S4D, discretize, initial_a, s4d_classifier, s4d_kernel


def stepped(layer, x):
    state, outputs = layer.initial_state(len(x)), []
    for place in x.unbind(2):
        out, state = layer.step(place, state)
        outputs.append(out)
    return torch.stack(outputs, 2)


@pytest.mark.parametrize("discretization", ["zoh", "bilinear"])
@pytest.mark.parametrize(("length", "states"), [(1, 2), (37, 6)])
def test_convolution_is_recurrence(discretization, length, states):
    torch.manual_seed(0)
    layer = S4D(3, states=states, discretization=discretization).double()
    x = torch.randn(2, 3, length, dtype=torch.float64)
    torch.testing.assert_close(layer(x), stepped(layer, x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("discretization", ["zoh", "bilinear"])
def test_discretisations_come_from_their_definitions(discretization):
    """Held inputs are an integral of matrix exponentials; bilinear is the trapezoid rule."""
    A, step = initial_a("inv", 6), torch.tensor([0.03], dtype=torch.float64)  # noqa: N806
    decay, entering = discretize(A, step, discretization)
    one = torch.eye(3, dtype=A.dtype)
    matrix = torch.diag(A[0]) * step
    if discretization == "zoh":
        expected = torch.linalg.matrix_exp(matrix), (torch.linalg.matrix_exp(matrix) - one) @ torch.diag(1 / A[0])
    else:
        below = torch.linalg.inv(one - matrix / 2)
        expected = below @ (one + matrix / 2), below * step
    torch.testing.assert_close(torch.diag(decay[0]), expected[0])
    torch.testing.assert_close(torch.diag(entering[0]), expected[1])


def test_kernel_by_hand():
    # One pair that decays to half each place: 2 · 3 · (1, ½, ¼).
    half = torch.tensor([[0.5 + 0j]])
    torch.testing.assert_close(s4d_kernel(half, torch.tensor([[3.0 + 1j]]), 3), torch.tensor([[6.0, 3.0, 1.5]]))


def test_starts():
    lin, inv, legs = (initial_a(name, 64)[0] for name in ("lin", "inv", "legs"))
    for start in (lin, inv, legs):
        assert start.shape == (32,)
        torch.testing.assert_close(start.real, torch.full((32,), -0.5, dtype=torch.float64))
    torch.testing.assert_close(lin.imag[:3], torch.tensor([0, math.pi, 2 * math.pi], dtype=torch.float64))
    # The inverse law follows the eigenvalues of HiPPO.
    torch.testing.assert_close(inv.imag[:8], legs.imag[:8], rtol=0.2, atol=0)
    random = initial_a("random", 64, 5)
    assert random.shape == (5, 32)
    assert not torch.equal(random[0], random[1])


@pytest.mark.parametrize("init", ["lin", "inv", "legs", "random"])
def test_every_start_decays(init):
    torch.manual_seed(0)
    kernel = S4D(4, states=8, init=init).kernel(20_000)
    assert kernel[:, -100:].abs().max() < 0.01 * kernel.abs().max()


def test_double_precision_agrees_far_along():
    torch.manual_seed(0)
    layer = S4D(2, states=64)
    short = layer.kernel(4096)
    torch.testing.assert_close(short.double(), layer.double().kernel(4096), rtol=0, atol=1e-4)


def test_classifier_of_features_and_of_a_sequence():
    network = s4d_classifier(in_channels=2, num_classes=0, dim=4, depth=2, states=4, prenorm=True).eval()
    x = torch.rand(3, 2, 5, 7)
    assert network(x).shape == (3, 4)
    torch.testing.assert_close(network(x), network(x.flatten(2)))


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"init": "hippo"}, "init must be one of lin, inv, legs, random, got 'hippo'"),
        ({"states": 5}, "states must be even, they come in conjugate pairs, got 5"),
        ({"discretization": "euler"}, "discretization must be one of zoh, bilinear, got 'euler'"),
    ],
)
def test_wrong_arguments(wrong, text):
    with pytest.raises(ValueError, match=text):
        S4D(4, **wrong)
