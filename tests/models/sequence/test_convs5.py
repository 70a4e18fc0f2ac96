import pytest
import torch

from foveal.evidence.models.sequence.convs5 import attention
from foveal.measure.cost import count_macs
from foveal.models.sequence.convs5 import ConvS5, ConvS5Layer, ConvS5Video, linear_scan


def small(**changes):
    torch.manual_seed(0)
    return ConvS5Video(**{"dim": 6, "depth": 2, "states": 8, "stride": 2, **changes}).double().eval()


@pytest.mark.parametrize("frames", [1, 2, 3, 7, 8, 13])
@pytest.mark.parametrize("begun", [False, True])
def test_scan_is_the_recurrence(frames, begun):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, frames, 3, 4, dtype=torch.cdouble, generator=generator)
    decay = torch.polar(torch.tensor([0.5, 0.9, 1.0]).double(), torch.tensor([1.0, -2.0, 0.3]).double())
    state = torch.randn(2, 3, 4, dtype=torch.cdouble, generator=generator) if begun else None
    now, expected = torch.zeros_like(x[:, 0]) if state is None else state, []
    for frame in x.unbind(1):
        now = decay[:, None] * now + frame
        expected.append(now)
    torch.testing.assert_close(linear_scan(x, decay, state), torch.stack(expected, 1), rtol=0, atol=1e-12)


def test_scan_gradients():
    x = torch.randn(1, 5, 2, dtype=torch.cdouble, requires_grad=True)
    decay = torch.randn(2, dtype=torch.cdouble, requires_grad=True)
    state = torch.randn(1, 2, dtype=torch.cdouble, requires_grad=True)
    assert torch.autograd.gradcheck(linear_scan, (x, decay, state))


@pytest.mark.parametrize("cut", [1, 4, 10])
def test_parts_of_a_film_continue_one_another(cut):
    network, x = small(), torch.rand(2, 11, 1, 9, 7, dtype=torch.float64)
    first, states = network.predict(x[:, :cut])
    second, _ = network.predict(x[:, cut:], states)
    torch.testing.assert_close(torch.cat([first, second], 1), network(x), rtol=0, atol=1e-12)


def test_the_input_map_is_held_between_frames():
    """B̄ = Λ⁻¹ (exp(ΔΛ) - 1) B, and a film of one frame shows nothing else."""
    torch.manual_seed(0)
    layer = ConvS5(1, states=2, kernel_size=1).double()
    x = torch.ones(1, 1, 1, 1, 1, dtype=torch.float64)
    eigenvalue = torch.complex(layer.decay, layer.frequency)
    real, imaginary = layer.entering.flatten()
    entering = (torch.exp(eigenvalue * layer.log_step.exp()) - 1) / eigenvalue * torch.complex(real, imaginary)
    out, state = layer(x)
    torch.testing.assert_close(state.flatten(), entering)
    real, imaginary = layer.leaving.flatten()
    torch.testing.assert_close(out.flatten(), 2 * (entering * torch.complex(real, imaginary)).real)


def test_a_state_cannot_grow():
    layer = ConvS5(2, states=4)
    with torch.no_grad():
        layer.decay.fill_(1.0)
    assert layer(torch.rand(1, 200, 2, 3, 3))[0].isfinite().all()


def test_frames_of_any_size_and_films_without_batch():
    network = small(in_channels=3, stride=4)
    x = torch.rand(1, 3, 3, 13, 6, dtype=torch.float64)
    assert network(x).shape == x.shape
    torch.testing.assert_close(network(x[0]), network(x)[0])


def test_generation_feeds_itself():
    network, x = small(), torch.rand(1, 4, 1, 8, 8, dtype=torch.float64)
    made = network.generate(x, 3)
    assert made.shape == (1, 3, 1, 8, 8)
    film = torch.cat([x, made[:, :2]], 1)
    torch.testing.assert_close(network(film)[:, 3:], made, rtol=0, atol=1e-12)


def test_the_state_and_the_cost_of_a_frame_do_not_grow():
    network = small()
    sizes = []
    for frames in (1, 5):
        _, states = network.predict(torch.rand(1, frames, 1, 8, 8, dtype=torch.float64))
        sizes.append([state.shape for state in states])
    assert sizes[0] == sizes[1] == [(1, 4, 4, 4)] * 2
    one, eight = (count_macs(small().float(), (1, frames, 1, 8, 8)) for frames in (1, 8))
    assert eight == 8 * one


def test_the_state_that_the_claims_time_against_does_grow():
    network = attention()
    _, states = network.predict(torch.rand(1, 1, 1, 8, 8))
    _, more = network.predict(torch.rand(1, 1, 1, 8, 8), states)
    assert [[part.shape for part in state] for state in (states[0], more[0])] == [[(1, 16, 32)] * 2, [(1, 32, 32)] * 2]


def test_a_layer_has_the_multiply_adds_of_four_convolutions():
    class First(ConvS5Layer):
        def forward(self, x):
            return super().forward(x)[0]

    assert count_macs(First(4, states=4), (1, 5, 4, 3, 3)) == 45 * 9 * 4 * 4 * 4


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"states": 3}, "states must be even, they come in conjugate pairs, got 3"),
        ({"kernel_size": 2}, "kernel_size must be odd, got 2; take 3"),
    ],
)
def test_wrong_arguments(wrong, text):
    with pytest.raises(ValueError, match=text):
        ConvS5(4, **wrong)
