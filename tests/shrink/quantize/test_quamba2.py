import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from foveal.nn.mamba import Mamba
from foveal.shrink.quantize.codes import Codes, per_tensor
from foveal.shrink.quantize.mamba import integers_
from foveal.shrink.quantize.quamba import Quamba
from foveal.shrink.quantize.quamba2 import Quamba2, cluster, gptq, packed_bytes, permute_


def stack():
    torch.manual_seed(0)
    return nn.Sequential(Mamba(12, state=4, bidirectional=True), Mamba(12, state=4))


def tokens(batch=40):
    return torch.randn(batch, 9, 12, generator=torch.Generator().manual_seed(1))


def error(model, like):
    with torch.no_grad():
        return float((model(tokens()) - like(tokens())).norm() / like(tokens()).norm())


def test_clusters_are_neighbours_near_each_other():
    largest = torch.tensor([1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 5.0, 5.1, 20.0])
    assert cluster(largest, 3).tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 2]
    assert cluster(largest, 1).tolist() == [0] * 9
    assert cluster(largest, 9).tolist() == list(range(9))
    assert cluster(torch.ones(6), 3).tolist() == [0, 0, 1, 1, 2, 2]


def test_any_order_of_channels_computes_the_same():
    model = stack()
    whole = copy.deepcopy(model)
    mixer = integers_(model)[0]
    order = torch.randperm(24)
    permute_(mixer, order)
    assert error(model, whole) < 1e-5
    assert torch.equal(mixer.weight("D_b"), whole[0].D_b[order])
    permute_(mixer, order.argsort())
    assert all(torch.equal(mixer.weight(n), getattr(whole[0], n).weight) for n in ("in_proj", "out_proj", "conv1d_b"))


def test_gptq_rounds_better_than_each_weight_alone():
    torch.manual_seed(0)
    weight, x = torch.randn(16, 32), torch.randn(200, 32) @ torch.randn(32, 32)
    codes, scales = gptq(weight, x.mT @ x, group_size=8)
    assert codes.dtype == torch.int8
    assert codes.min() >= -8
    assert codes.max() <= 7
    assert scales.shape == (16, 4)
    kept = Codes(codes, scales, bits=4, group_size=8)()
    scale = scales.float().repeat_interleave(8, dim=1)
    alone = torch.round(weight / scale).clamp(-8, 7) * scale
    errors = [((w - weight) @ x.mT).square().sum() for w in (kept, alone)]
    assert errors[0] < 0.7 * errors[1]


def test_gptq_without_correlation_is_plain_rounding():
    torch.manual_seed(0)
    weight = torch.randn(4, 10)
    codes, scales = gptq(weight, torch.eye(10), group_size=4)
    assert scales.shape == (4, 3)
    scale = scales.float().repeat_interleave(4, dim=1)[:, :10]
    assert torch.equal(codes, torch.round(weight / scale).clamp(-8, 7).to(torch.int8))


def test_gptq_gives_up_inputs_that_are_always_zero():
    codes, _ = gptq(torch.ones(2, 4), torch.diag(torch.tensor([1.0, 0.0, 2.0, 1.0])), group_size=4)
    assert codes[:, 1].tolist() == [0, 0]
    assert (codes[:, [0, 2, 3]] != 0).all()


@pytest.mark.parametrize(("weights", "activations", "most"), [(8, 8, 0.1), (4, 8, 0.3), (4, 16, 0.3), (8, 16, 0.05)])
def test_each_width_of_bits_is_near(weights, activations, most):
    model = stack()
    whole = copy.deepcopy(model)
    assert Quamba2(weight_bits=weights, activation_bits=activations).apply(model, tokens()) is model
    assert 1e-4 < error(model, whole) < most
    for mixer in integers_(model):
        bits = {name: part.bits for name, part in mixer.weights.items() if isinstance(part, Codes)}
        four = {name for name, b in bits.items() if b == 4}
        assert four == ({n for n in bits if n.startswith(("in_proj", "x_proj", "out_proj"))} if weights == 4 else set())
        assert all((mixer.point(name).scale is None) == (activations == 16) for name in mixer.points)


def test_channels_are_sorted_and_share_scales():
    model = stack()
    Quamba2(clusters=3, state_groups=2).apply(model, tokens())
    two_ways, one_way = integers_(model)
    scale = one_way.point("u").scale[:, 0]
    assert torch.equal(scale, scale.sort().values)
    assert len(scale.unique()) == 3
    labels = [two_ways.point(f"u{way}").scale[:, 0].unique_consecutive() for way in ("", "_b")]
    assert all(len(label) <= 3 for label in labels)
    for name in ("B", "C"):
        groups = one_way.point(name).scale[:, 0]
        assert groups[0] == groups[1]
        assert groups[2] == groups[3]
        assert groups[0] != groups[2]


def test_clusters_round_the_input_better():
    torch.manual_seed(0)
    model = nn.Sequential(Mamba(12, state=4))
    with torch.no_grad():
        model[0].conv1d.weight[::3] *= 20
    errors = []
    for clusters in (1, 4):
        found = []
        config = Quamba2(weight_bits=8, clusters=clusters, rotate=False)
        mixer = integers_(config.apply(copy.deepcopy(model), tokens()))[0]
        point = mixer.point("u")
        point.register_forward_hook(lambda _, inputs, out, found=found: found.append((out - inputs[0]).square().mean()))
        with torch.no_grad():
            mixer(tokens())
        errors.append(found[0])
    assert errors[1] < 0.8 * errors[0]


def test_bytes_are_those_of_codes_and_scales():
    model = Quamba2(group_size=16).apply(nn.Sequential(Mamba(16, state=4)), torch.randn(4, 9, 16))
    # in 64×16, x 9×32, out 16×32 of four bits, with two bytes for each row and 16 inputs
    four = 64 * 8 + 9 * 16 + 16 * 16 + 2 * (64 + 9 * 2 + 16 * 2)
    # convolution 32×4, dt 32×1 and its bias 32, A 32×4, D 32: one scale each
    eight = 128 + 32 + 32 + 128 + 32 + 5 * 4
    assert packed_bytes(model) == (four + eight, 2 * (64 * 16 + 9 * 32 + 16 * 32 + 128 + 32 + 32 + 128 + 32))


def test_one_scale_reaches_the_largest():
    weight = torch.tensor([[0.5, -1.27], [0.0, 1.0]])
    codes, scale = per_tensor(weight)
    assert codes.tolist() == [[50, -127], [0, 100]]
    assert scale == pytest.approx(0.01)


def test_once_is_enough():
    model = Quamba2().apply(stack(), [tokens()])
    with pytest.raises(ValueError, match="model must be in floating point, got one that is quantised"):
        Quamba2().apply(model, tokens())


def test_state_groups_must_divide_the_states():
    with pytest.raises(ValueError, match="state_groups must divide the 4 states, got 3"):
        Quamba2(state_groups=3).apply(stack(), tokens())


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"weight_bits": 3}, "weight_bits must be 4 or 8, got 3"),
        ({"activation_bits": 4}, "activation_bits must be 8 or 16, got 4"),
        ({"clusters": 0}, "clusters and state_groups must be at least 1, got 0 and 4"),
        ({"state_groups": 0}, "clusters and state_groups must be at least 1, got 4 and 0"),
        ({"group_size": 3}, "group_size must be even, got 3; two codes share a byte"),
        ({"group_size": 0}, "group_size must be even, got 0"),
        ({"damping": 0.0}, "damping must be above 0, got 0.0"),
    ],
)
def test_the_configuration_is_checked(wrong, text):
    with pytest.raises(ValueError, match=text):
        Quamba2(**wrong)


@pytest.mark.parametrize("quantize", [Quamba(), Quamba2()], ids=["quamba", "quamba2"])
def test_a_stored_model_is_loaded_into_a_fresh_one(quantize, tmp_path):
    model = stack()
    quantize.apply(model, tokens())
    save_file(model.state_dict(), tmp_path / "codes.safetensors")
    fresh = nn.Sequential(Mamba(12, state=4, bidirectional=True), Mamba(12, state=4))
    integers_(fresh)
    fresh.load_state_dict(load_file(tmp_path / "codes.safetensors"))
    assert torch.equal(fresh(tokens()), model(tokens()))
    assert packed_bytes(fresh) == packed_bytes(model)


def test_a_stored_model_that_is_not_quantised_is_loaded_into_a_quantised_one():
    plain, model = stack(), stack()
    integers_(plain)
    Quamba().apply(model, tokens())
    model.load_state_dict(plain.state_dict())
    assert torch.equal(model(tokens()), plain(tokens()))
