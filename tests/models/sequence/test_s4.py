import pytest
import torch

from foveal.models.sequence._layers import hippo
from foveal.models.sequence.s4 import S4, discretize_nplr, s4_classifier


def full(x):
    return torch.cat([x, x.conj()], -1)


def test_hippo_is_normal_plus_low_rank():
    eigenvalues, low, entering, vectors = hippo(10)
    n = torch.arange(10, dtype=torch.float64)
    matrix = torch.zeros(10, 10, dtype=torch.float64)
    for i in range(10):
        for k in range(10):
            matrix[i, k] = -((2 * i + 1) ** 0.5) * (2 * k + 1) ** 0.5 if i > k else -(i + 1) if i == k else 0
    unitary = torch.cat([vectors, vectors.conj()], 1)
    torch.testing.assert_close(unitary @ unitary.conj().T, torch.eye(10, dtype=unitary.dtype))
    core = torch.diag(full(eigenvalues)) - full(low)[:, None] * full(low).conj()
    torch.testing.assert_close(unitary @ core @ unitary.conj().T, matrix.to(unitary.dtype))
    torch.testing.assert_close(unitary @ full(entering), torch.sqrt(2 * n + 1).to(unitary.dtype))


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 200])
def test_kernel_is_that_of_the_matrices(length):
    """Made for 64 places: cut for fewer, grown for more."""
    torch.manual_seed(0)
    layer = S4(3, states=8, max_length=64).double()
    matrix, now = discretize_nplr(*layer._system())
    leaving, found = full(layer.recurrence()[-1]), []
    for _ in range(length):
        found.append((leaving * now).sum(-1).real)
        now = (matrix @ now[..., None])[..., 0]
    torch.testing.assert_close(layer.kernel(length), torch.stack(found, -1), rtol=0, atol=1e-12)


def test_an_odd_length_has_no_root_at_minus_one():
    torch.manual_seed(0)
    even, odd = S4(2, states=6, max_length=40).double(), S4(2, states=6, max_length=41).double()
    odd.load_state_dict(even.state_dict())
    # The same system, whose C̃ is for another length.
    with torch.no_grad():
        decay, _ = discretize_nplr(*even._system())
        whole = full(even.recurrence()[-1])
        leaving = whole - (whole[:, None] @ torch.linalg.matrix_power(decay, 41))[:, 0]
        odd.leaving.copy_(torch.view_as_real(leaving[:, :3]))
    torch.testing.assert_close(odd.kernel(40), even.kernel(40), rtol=0, atol=1e-12)


@pytest.mark.parametrize("length", [1, 50, 90])
def test_convolution_is_recurrence(length):
    torch.manual_seed(0)
    layer = S4(3, states=8, max_length=50).double()
    x = torch.randn(2, 3, length, dtype=torch.float64)
    state, matrices, outputs = layer.initial_state(2), layer.recurrence(), []
    for place in x.unbind(2):
        out, state = layer.step(place, state, matrices)
        outputs.append(out)
    torch.testing.assert_close(layer(x), torch.stack(outputs, 2), rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.step(x[..., 0], layer.initial_state(2))[0], outputs[0])


def test_single_precision_agrees_with_double():
    torch.manual_seed(0)
    layer = S4(2, states=64, max_length=1024)
    single = layer.kernel(1024)
    double = layer.double().kernel(1024)
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-4 * double.abs().max().item())


def test_parameters_of_a_feature():
    layer = S4(5, states=8, max_length=16)
    outside = sum(p.numel() for p in layer.out.parameters())
    assert sum(p.numel() for p in layer.parameters()) - outside == 5 * (4 * 8 + 2)


def test_classifier():
    network = s4_classifier(in_channels=1, num_classes=3, dim=4, depth=2, states=4, max_length=16).eval()
    assert network(torch.rand(2, 1, 5, 7)).shape == (2, 3)


def test_a_classifier_refuses_what_its_layers_do_not_take():
    with pytest.raises(TypeError, match="unexpected keyword argument 'state'"):
        s4_classifier(state=4)


def test_odd_states_are_refused():
    with pytest.raises(ValueError, match="states must be even, they come in conjugate pairs, got 7"):
        S4(4, states=7)
