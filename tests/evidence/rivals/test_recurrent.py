import pytest
import torch
import torch.nn.functional as F

from foveal.evidence.rivals.recurrent import ConvLSTM, FrameAttention, attention_step
from foveal.measure.cost import count_macs


def test_conv_lstm_continues_from_its_state():
    torch.manual_seed(0)
    layer, x = ConvLSTM(4), torch.rand(2, 5, 4, 3, 3)
    whole, (hidden, cell) = layer(x)
    assert whole.shape == x.shape
    assert torch.equal(whole[:, -1], hidden)
    first, state = layer(x[:, :2])
    second, (again, last) = layer(x[:, 2:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close((again, last), (hidden, cell))


def test_conv_lstm_forgets_and_takes_in_as_its_gates_say():
    layer, x = ConvLSTM(1), torch.ones(1, 1, 1, 1, 1)
    with torch.no_grad():
        layer.gates.weight.zero_()
        layer.gates.bias.copy_(torch.tensor([0.0, 100.0, 0.0, 100.0]))  # half taken in, all kept, half let out
    _, (hidden, cell) = layer(x, (torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), 2.0)))
    assert cell.item() == pytest.approx(2.5)
    assert hidden.item() == pytest.approx(0.5 * torch.tensor(2.5).tanh().item())


def test_conv_lstm_has_the_multiply_adds_of_its_convolution():
    assert count_macs(ConvLSTM(4), (1, 5, 4, 3, 3)) == 45 * 9 * 8 * 16


def test_frame_attention_sees_every_frame_so_far():
    torch.manual_seed(0)
    layer, x = FrameAttention(4).eval(), torch.rand(2, 3, 4, 3, 2)
    state = None
    for t in range(3):
        out, state = layer(x[:, t : t + 1], state)
    assert out.shape == (2, 1, 4, 3, 2)
    tokens = x.permute(0, 1, 3, 4, 2).flatten(1, 3)
    query, keys, values = layer.qkv(tokens).chunk(3, -1)
    assert [part.shape for part in state] == [(2, 18, 4)] * 2
    expected = layer.out(F.scaled_dot_product_attention(query[:, 12:], keys, values))
    torch.testing.assert_close(out[:, 0].flatten(2).transpose(1, 2), expected)


def test_attention_step_has_heads_of_64():
    assert attention_step(3, 7, 128)().shape == (1, 2, 3, 64)
