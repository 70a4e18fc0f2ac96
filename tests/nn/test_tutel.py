import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from foveal.nn.tutel import MODES, Tutel, capacity_of, decode, encode, load_balance, places, tutel_mlp
from foveal.ops.experts.processes import exchanged, gathered, most, place, summed


@pytest.fixture
def _alone():
    """A group of this process alone, which the layer treats as any other."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_places_count_first_choices_first():
    experts = torch.tensor([[0, 1], [1, 0], [0, 2], [0, 1]])
    assert places(experts, 4).tolist() == [[0, 1], [0, 3], [1, 0], [2, 2]]


def test_capacity_by_hand():
    assert capacity_of(100, 8, 2, 1.0, needed=90) == 26
    assert capacity_of(100, 8, 2, 1.25, needed=90) == 32
    assert capacity_of(100, 8, 2, 0.0, needed=90) == 90
    assert capacity_of(100, 8, 2, -1.0, needed=90) == 26
    assert capacity_of(100, 8, 2, -1.0, needed=7) == 7
    assert capacity_of(0, 8, 2, 1.0, needed=1) == 1


def test_encoding_and_decoding_by_hand():
    x, experts = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[1], [1], [1]])
    at = places(experts, 2)
    buffer = encode(x, experts, at, 2, 2)
    assert buffer.tolist() == [[[0.0], [0.0]], [[1.0], [2.0]]]
    assert decode(buffer, torch.tensor([[0.5], [1.0], [1.0]]), experts, at).tolist() == [[0.5], [2.0], [0.0]]


def test_one_expert_is_an_mlp():
    torch.manual_seed(0)
    layer, x = Tutel(6, hidden=9, num_experts=1, top_k=1), torch.randn(2, 5, 6)
    torch.testing.assert_close(layer(x)[0], F.gelu(x @ layer.w1.T) @ layer.w2)


def test_the_loss_is_one_when_loads_are_equal_and_more_when_not():
    experts = torch.arange(4)[:, None]
    assert load_balance(torch.zeros(4, 4), experts) == 1.0
    torch.testing.assert_close(
        load_balance(20 * torch.eye(4)[[0] * 4], torch.zeros(4, 1, dtype=torch.long)).round(), torch.tensor(4.0)
    )


def test_no_tokens_are_no_tokens():
    x, weights = torch.zeros(0, 6, requires_grad=True), torch.zeros(2, 3, 6)
    experts = torch.zeros(0, 2, dtype=torch.long)
    y = tutel_mlp(x, weights, weights, torch.zeros(0, 2), experts)
    y.sum().backward()
    assert y.shape == x.grad.shape == (0, 6)


@pytest.mark.usefixtures("_alone")
def test_all_modes_are_one_in_a_group_of_one():
    group = dist.group.WORLD
    torch.manual_seed(0)
    layer, x = Tutel(6, hidden=5, num_experts=3, capacity_factor=0.0, group=group), torch.randn(7, 6)
    with torch.no_grad():
        wanted = tutel_mlp(
            x,
            layer.w1.view(3, 5, 6),
            layer.w2.view(3, 5, 6),
            *_routed(layer, x),
            capacity_factor=0.0,
        )
    for mode in MODES:
        y, _ = layer(x, mode=mode)
        torch.testing.assert_close(y.detach(), wanted)
        layer.zero_grad()
        y.square().sum().backward()
        assert layer.w1.grad.abs().sum() > 0
    assert place(group) == (0, 1)
    assert most(5, group) == 5
    for tell in (gathered, summed, exchanged):
        t = torch.randn(1, 3, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda t, tell=tell: tell(t, group), t)


def _routed(layer, x):
    from foveal.ops.experts import top_experts

    return top_experts(layer.router(x), layer.top_k)


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "count"), [*((mode, 4) for mode in MODES), ("data", 3), ("sharded", 3)])
def test_two_processes_equal_one(mode, count):
    from foveal.evidence.nn.tutel import _layer, _stepped, together

    wanted = _stepped(_layer(count, None), "data")
    for name, got in together()[f"{mode} {count}"].items():
        torch.testing.assert_close(got, wanted[name], rtol=1e-5, atol=1e-5)


def test_a_process_that_fails_is_told(monkeypatch):
    from foveal.evidence.nn import tutel

    monkeypatch.setattr(tutel.sys, "executable", "false")
    with pytest.raises(RuntimeError, match="a process of the group failed"):
        tutel.together.__wrapped__()


def test_what_does_not_fit_is_told(monkeypatch):
    layer = Tutel(6, hidden=5, num_experts=3)
    with pytest.raises(ValueError, match="mode must be one of data, expert, sharded, got 'model'"):
        layer(torch.zeros(1, 6), mode="model")
    layer.world = 2
    with pytest.raises(ValueError, match="mode 'expert' needs whole experts, got 3 for 2 processes; take 'sharded'"):
        layer(torch.zeros(1, 6), mode="expert")
    monkeypatch.setattr("foveal.nn.tutel.place", lambda _: (0, 2))
    with pytest.raises(ValueError, match=r"must be a multiple of the 2 processes, got 3 · 5"):
        Tutel(6, hidden=5, num_experts=3)
