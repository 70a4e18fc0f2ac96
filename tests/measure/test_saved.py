import torch
from torch import nn

from foveal.measure.saved import saved_bytes


def test_what_backward_needs_is_counted():
    x = torch.randn(3, 5, requires_grad=True)
    assert saved_bytes(lambda: x * 2) == 0
    assert saved_bytes(lambda: x.exp()) == 4 * 15  # its output
    assert saved_bytes(lambda: x.square()) == 4 * 15  # its input
    with torch.no_grad():
        assert saved_bytes(lambda: x.exp()) == 0


def test_a_storage_counts_once_and_whole():
    x = torch.randn(6, requires_grad=True)
    assert saved_bytes(lambda: x.square() + x.cos()) == 4 * 6
    assert saved_bytes(lambda: x[:2].square()) == 4 * 6


def test_weights_are_left_out():
    layer, x = nn.Linear(5, 7), torch.randn(3, 5)
    other = torch.randn(3, 5, requires_grad=True)
    assert saved_bytes(lambda: layer(x), layer.parameters()) == 4 * 15
    assert saved_bytes(lambda: layer(other)) == 4 * (15 + 35)


def test_the_meta_device_gives_the_same():
    counts = []
    for device in ("cpu", "meta"):
        net = nn.Sequential(nn.Linear(5, 7), nn.ReLU(inplace=True), nn.Linear(7, 2)).to(device)
        x = torch.ones(3, 5, device=device)
        counts.append(saved_bytes(lambda net=net, x=x: net(x), net.parameters()))
    assert counts == [4 * (15 + 21)] * 2  # the input, and what ReLU gives
