import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from foveal.train import eight_bit_approximations
from foveal.train.eight_bit_approximations import EightBitExchange, decode, dynamic_tree, eight_bit_hook, encode, linear


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def alone():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def gradients(model, x, y):
    model.zero_grad()
    F.cross_entropy(model(x), y).backward()
    return [p.grad.clone() for p in model.parameters()]


def test_numbers_of_the_table():
    table = dynamic_tree()
    assert len(table) == len(table.unique()) == 256
    assert torch.equal(table[:127], -table[128:255].flip(0))
    assert table[127] == 0
    assert table[255] == 1
    torch.testing.assert_close(table[128], torch.tensor(5.5e-7))  # six zeros: the middle of [0.1, 1] times a millionth
    torch.testing.assert_close(table[254], torch.tensor(1 - 0.9 / 128))
    assert len(linear()) == 255


@pytest.mark.parametrize("table", [None, linear()], ids=["tree", "linear"])
def test_a_value_becomes_the_nearest_number(table):
    x = drawn(7, 11)
    codes, largest = encode(x, table)
    numbers = dynamic_tree() if table is None else table
    nearest = (x[..., None] / largest - numbers).abs().argmin(-1)
    assert codes.dtype == torch.uint8
    assert codes.shape == x.shape
    torch.testing.assert_close(decode(codes, largest, table), numbers[nearest] * x.abs().max())


def test_numbers_of_the_table_come_back():
    table = dynamic_tree() * 3
    assert torch.equal(decode(*encode(table)), table)
    assert decode(*encode(torch.zeros(3))).abs().max() == 0


def test_relative_errors_stay_small_where_those_of_integers_do_not():
    x = torch.logspace(-5, 0, 200)
    errors = [((decode(*encode(x, t), t) - x).abs() / x).mean() for t in (dynamic_tree(), linear())]
    assert errors[0] < 0.1 < errors[1]


def test_alone_a_process_gets_its_own_gradients_rounded(alone):
    torch.manual_seed(0)
    network, state, data = (
        nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)),
        EightBitExchange(),
        (drawn(6, 5), torch.arange(6) % 3),
    )
    plain = gradients(network, *data)
    model = DistributedDataParallel(network)
    model.register_comm_hook(state, eight_bit_hook)
    for got, wanted in zip(gradients(model, *data), plain, strict=True):
        assert torch.equal(got, decode(*encode(wanted)))
    values = sum(p.numel() for p in network.parameters())
    assert (state.sent, state.plain) == (values + 4 * 4, 4 * values)


def test_gradients_of_two_processes_are_averaged(alone, monkeypatch):
    mine, theirs = drawn(9), 5 * drawn(9, seed=1)
    sent = list(encode(theirs))

    def gathered(places, tensor, **_):
        places[0].copy_(tensor)
        places[1].copy_(sent[0] if tensor.dtype == torch.uint8 else sent[1][None])

        class Work:
            def get_future(self):
                future = torch.futures.Future()
                future.set_result(places)
                return future

        return Work()

    class Bucket:
        def buffer(self):
            return mine

        def gradients(self):
            return [mine]

    wanted = (decode(*encode(mine)) + decode(*sent)) / 2
    monkeypatch.setattr(eight_bit_approximations.dist, "get_world_size", lambda group: 2)
    monkeypatch.setattr(eight_bit_approximations.dist, "all_gather", gathered)
    torch.testing.assert_close(eight_bit_hook(EightBitExchange(), Bucket()).wait(), wanted)


def test_wrong_tensors_raise():
    with pytest.raises(ValueError, match="at most 256 numbers, got a table of 257; use a smaller one"):
        encode(drawn(3), torch.linspace(-1, 1, 257))
    with pytest.raises(ValueError, match="at least one value is wanted, got an empty one; leave it out"):
        encode(torch.empty(0))
    with pytest.raises(ValueError, match="finite values are wanted, got inf or nan"):
        encode(torch.tensor([1.0, float("nan")]))
