import pytest
import torch
import torch.nn.functional as F

from foveal.nn.deep_gpu_cnn import (
    DeepGPUCNN,
    ScaledTanh,
    SparseMaps,
    connected_convolution,
    connected_convolution_reference,
    connection_table,
    distorted,
    layers,
    train_online,
)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_line_of_notation():
    assert layers("20M4S1-MP2-60M5R8-150N") == [
        {"maps": 20, "side": 4, "skip": 1},
        {"pool": 2},
        {"maps": 60, "side": 5, "reads": 8},
        {"neurons": 150},
    ]


def test_sides_and_parameters_by_hand():
    network = DeepGPUCNN("3M5S1-MP2-4M3R2-5N", img_size=29)  # 29, 13, 6, 4
    assert network(torch.zeros(2, 1, 29, 29)).shape == (2, 10)
    sides = {m.in_features for m in network if isinstance(m, torch.nn.Linear)}
    assert sides == {4 * 4 * 4, 5}
    assert network.connected() == (3 * 25 + 3) + (4 * 2 * 9 + 4) + (64 * 5 + 5) + (5 * 10 + 10)
    assert max(p.abs().max() for p in network.parameters()) <= 0.05


def test_each_map_reads_what_the_table_names():
    table = connection_table(6, 5, 2)
    assert table.sum(1).tolist() == [2] * 6
    assert torch.equal(table, connection_table(6, 5, 2))
    assert not torch.equal(table, connection_table(6, 5, 2, seed=1))
    x, weight, bias = (
        t.double().requires_grad_() for t in (drawn(2, 5, 9, 7), drawn(6, 5, 3, 3, seed=1), drawn(6, seed=2))
    )
    results = []
    for function in (connected_convolution, connected_convolution_reference):
        out = function(x, weight, bias, table, 1)
        results.append([out, *torch.autograd.grad(out.square().sum(), (x, weight, bias))])
    torch.testing.assert_close(*results)
    assert (results[0][2][~table] == 0).all()


def test_with_all_connected_it_is_a_convolution():
    layer, x = SparseMaps(3, 4, 3), drawn(1, 3, 6, 6)
    torch.nn.init.uniform_(layer.weight)
    torch.nn.init.uniform_(layer.bias)
    assert layer.connections == 12
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight, layer.bias))


def test_scaled_tanh_is_about_the_identity_at_one():
    torch.testing.assert_close(
        ScaledTanh()(torch.tensor([-1.0, 0.0, 1.0])), torch.tensor([-1.0, 0.0, 1.0]), atol=1e-4, rtol=0
    )


def test_distortions_move_scale_and_rotate():
    x = torch.zeros(2, 1, 20, 20)
    x[:, :, 10:] = 1
    still = distorted(x, move=0, scale=0, rotate=0)
    torch.testing.assert_close(still, x)
    given = {"move": 0.0, "scale": 0.0, "rotate": 0.0}
    for name, value in {"move": 0.2, "scale": 0.3, "rotate": 20.0}.items():
        found = distorted(x, **(given | {name: value}), generator=torch.Generator().manual_seed(0))
        assert not torch.equal(found[0], found[1])
        assert not torch.equal(found, x)


def test_training_takes_one_picture_a_step_by_plain_descent():
    x, labels = drawn(3, 1, 6, 6), torch.tensor([0, 1, 0])
    torch.manual_seed(0)
    network = DeepGPUCNN("2M3-4N", img_size=6, num_classes=2)
    by_hand = DeepGPUCNN("2M3-4N", img_size=6, num_classes=2)
    by_hand.load_state_dict(network.state_dict())
    losses = train_online(network, x, labels, epochs=2, lr=0.1, decay=0.5, seed=3)
    assert len(losses) == 2
    assert not network.training
    generator, rate = torch.Generator().manual_seed(3), 0.1
    for _ in range(2):
        optimizer = torch.optim.SGD(by_hand.parameters(), rate)
        for i in torch.randperm(3, generator=generator).tolist():
            optimizer.zero_grad()
            F.cross_entropy(by_hand(x[i : i + 1]), labels[i : i + 1]).backward()
            optimizer.step()
        rate /= 2
    torch.testing.assert_close(list(network.parameters()), list(by_hand.parameters()))


def test_training_stops_after_its_steps_and_distorts():
    x, labels = drawn(4, 1, 6, 6), torch.tensor([0, 1, 0, 1])
    network = DeepGPUCNN("2M3-4N", img_size=6, num_classes=2)
    before = [p.clone() for p in network.parameters()]
    train_online(network, x, labels, steps=0)
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    train_online(network, x, labels, distortion={"rotate": 10.0})
    assert not torch.equal(before[0], next(network.parameters()))


def test_wrong_networks_raise():
    with pytest.raises(ValueError, match="a layer reads 20M4, 20M4S1, 60M5R8, MP2 or 150N, got '20C4' in '20C4-MP2'"):
        layers("20C4-MP2")
    with pytest.raises(ValueError, match="maps and pooling come before neurons, got 'MP2' after them"):
        layers("20M4-150N-MP2")
    with pytest.raises(ValueError, match="a map reads between 1 and 3 of the maps before, got 4; change R"):
        DeepGPUCNN("3M3-5M3R4")
    with pytest.raises(ValueError, match="a filter or pooling of side 5 does not fit into maps of side 4: '3M3-5M5'"):
        DeepGPUCNN("3M3-5M5", img_size=6)
    with pytest.raises(ValueError, match="pictures to train on are wanted, got none; give at least one"):
        train_online(DeepGPUCNN("2M3"), drawn(0, 1, 28, 28), torch.zeros(0))
