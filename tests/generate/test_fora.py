import pytest
import torch
from torch import nn

from foveal.generate.fora import fora


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(4, 2, batch_first=True)
        self.mlp = nn.Linear(4, 4)

    def forward(self, x, t):
        x = x + t * self.attn(t * x, t * x, t * x, need_weights=False)[0]
        return x + t * self.mlp(x.relu())


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Layer(), Layer()])

    def forward(self, x, t):
        for layer in self.layers:
            x = layer(x, t)
        return x


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Net().eval().requires_grad_(False)


def run(network, steps=7):
    x = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    outs = []
    for t in range(steps):
        x = x - 0.1 * network(x, 1 - t / steps)
        outs.append(x)
    return torch.stack(outs)


def plainly(network, every, steps=7):
    """The same without hooks: the last outputs stand in a list."""
    x = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    outs, kept = [], []
    for i in range(steps):
        t = 1 - i / steps
        y, full = x, i % every == 0
        if full:
            kept = []
        for j, layer in enumerate(network.layers):
            if full:
                kept.append(layer.attn(t * y, t * y, t * y, need_weights=False)[0])
            y = y + t * kept[2 * j]
            if full:
                kept.append(layer.mlp(y.relu()))
            y = y + t * kept[2 * j + 1]
        x = x - 0.1 * y
        outs.append(x)
    return torch.stack(outs)


@pytest.mark.parametrize("every", [1, 2, 3, 7, 9])
def test_it_equals_the_plain_loop_and_counts_its_calls(network, every):
    with fora(network, every) as cache:
        outs = run(network)
    assert torch.equal(outs, plainly(network, every))
    assert cache.calls == {f"layers.{i}.{name}": -(-7 // every) for i in (0, 1) for name in ("attn", "mlp")}
    assert torch.equal(outs[0], run(network, 7)[0])
    assert torch.equal(outs, run(network)) == (every == 1)


def test_the_network_is_as_it_was_afterwards_also_when_a_step_raises(network):
    before = run(network)
    with pytest.raises(ZeroDivisionError), fora(network, 2):
        network(torch.zeros(1, 1, 4), 1 / 0)
    assert all("forward" not in module.__dict__ for module in network.modules())
    assert not network._forward_pre_hooks
    assert torch.equal(run(network), before)


def test_one_inside_the_other_leaves_the_outer_one(network):
    with fora(network, 3, names=("mlp",)) as outer:
        with fora(network, 2, names=("attn",)):
            run(network)
        run(network)
    assert outer.calls == {"layers.0.mlp": 5, "layers.1.mlp": 5}


def test_reset_begins_another_run(network):
    with fora(network, 3) as cache:
        first = run(network)
        cache.reset()
        assert torch.equal(run(network), first)


@pytest.mark.parametrize(
    ("every", "names", "text"),
    [
        (0, ("mlp",), "every must be at least 1, got 0; 3 is usual"),
        (3, ("block", "x"), "fora keeps blocks named block, x, Net has none; give names"),
    ],
)
def test_what_does_not_fit_raises(network, every, names, text):
    with pytest.raises(ValueError, match=text), fora(network, every, names=names):
        pass
