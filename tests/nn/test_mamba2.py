import pytest
import torch
import torch.nn.functional as F

from foveal.nn.mamba2 import Mamba2


def mixer(kernel_size=3):
    torch.manual_seed(0)
    made = Mamba2(6, 4, state=5, kernel_size=kernel_size).double()
    return made, torch.randn(2, 9, 6, dtype=torch.float64)


def plain(m, tokens):
    """Token by token, tap by tap, head by head."""
    inner, states, _ = m.parts
    gate, mixed, dt = m.in_proj(tokens).split([inner, inner + 2 * states, m.num_heads], -1)
    width, held, found = inner // m.num_heads, [0.0] * m.num_heads, []
    for t in range(tokens.shape[1]):
        seen = [mixed[:, t - k] * m.conv1d.weight[:, 0, -1 - k] for k in range(m.kernel_size) if t >= k]
        x, keys, queries = F.silu(sum(seen) + m.conv1d.bias).split(m.parts, -1)
        step, y = F.softplus(dt[:, t] + m.dt_bias), []
        for h in range(m.num_heads):
            own, now = x[:, h * width : (h + 1) * width], step[:, h, None, None]
            held[h] = torch.exp(-now * m.A_log[h].exp()) * held[h] + now * own[..., None] * keys[:, None]
            y.append((held[h] * queries[:, None]).sum(-1) + m.D[h] * own)
        gated = torch.cat(y, 1) * F.silu(gate[:, t])
        found.append(m.out_proj(gated / (gated.square().mean(-1, keepdim=True) + 1e-5).sqrt() * m.norm.weight))
    return torch.stack(found, 1)


@pytest.mark.parametrize("kernel_size", [1, 4])
def test_it_is_the_recurrence(kernel_size):
    m, tokens = mixer(kernel_size)
    torch.testing.assert_close(m(tokens), plain(m, tokens), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_a_tree_is_its_paths_and_replays_to_their_states(kernel_size):
    m, tokens = mixer(kernel_size)
    before, chain = tokens[:, :4], torch.arange(4) - 1
    _, read = m.tree(before, m.begin(2), chain)
    state = m.replay(m.begin(2), read, torch.arange(4))
    parents = torch.tensor([-1, 0, 0, 2, 1])
    y, read = m.tree(tokens[:, 4:], state, parents)
    for path in ([0], [0, 1], [0, 2], [0, 2, 3], [0, 1, 4]):
        alone = torch.cat((before, tokens[:, 4:][:, path]), 1)
        torch.testing.assert_close(y[:, path[-1]], m(alone)[:, -1], rtol=0, atol=1e-12)
        nodes = torch.arange(alone.shape[1])
        _, whole = m.tree(alone, m.begin(2), nodes - 1)
        wanted = m.replay(m.begin(2), whole, nodes)
        torch.testing.assert_close(tuple(m.replay(state, read, torch.tensor(path))), tuple(wanted), rtol=0, atol=1e-12)


def test_parameters_are_named_as_in_mamba_ssm():
    names = {
        "in_proj.weight",
        "conv1d.weight",
        "conv1d.bias",
        "A_log",
        "D",
        "dt_bias",
        "norm.weight",
        "out_proj.weight",
    }
    assert set(Mamba2(8, 4).state_dict()) == names


def test_initial_steps_lie_between_a_thousandth_and_a_tenth():
    torch.manual_seed(0)
    step = F.softplus(Mamba2(64, 64).dt_bias)
    assert 0.00099 < step.min() < 0.003
    assert 0.04 < step.max() < 0.101
