import copy

import pytest
import torch
from torch import nn

from foveal.nn.mamba import Mamba
from foveal.shrink.quantize.codes import Codes
from foveal.shrink.quantize.mamba import integers_
from foveal.shrink.quantize.quamba import Quamba, hadamard, rotate, rotate_


def stack():
    torch.manual_seed(0)
    return nn.Sequential(Mamba(12, state=4, bidirectional=True), Mamba(12, state=4))


def tokens(batch=40):
    return torch.randn(batch, 9, 12, generator=torch.Generator().manual_seed(1))


def error(model, like):
    with torch.no_grad():
        return float((model(tokens()) - like(tokens())).norm() / like(tokens()).norm())


@pytest.mark.parametrize("size", [1, 2, 12, 20, 24, 64, 96, 224])
def test_rotation_is_orthonormal_and_spreads(size):
    matrix = rotate(torch.eye(size, dtype=torch.float64))
    torch.testing.assert_close(matrix @ matrix.mT, torch.eye(size, dtype=torch.float64))
    assert matrix.abs().max() == pytest.approx(size**-0.5)


def test_rotation_is_the_kronecker_product():
    small = hadamard(48)
    assert small.shape == (12, 12)
    pair = torch.tensor([[1, 1], [1, -1]])
    x = torch.randn(3, 48)
    torch.testing.assert_close(rotate(x), x @ torch.kron(small, torch.kron(pair, pair)).float().mT / 48**0.5)


def test_rotation_has_a_gradient_after_inference():
    with torch.inference_mode():
        rotate(torch.rand(2, 40))
    x = torch.rand(2, 40, requires_grad=True)
    rotate(x).square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * x.detach())


def test_some_widths_have_no_matrix():
    with pytest.raises(ValueError, match=r"the inner width must be a power of two times .* got 23; take rotate=False"):
        rotate(torch.rand(1, 23))


def test_folding_changes_nothing():
    model = stack()
    whole = copy.deepcopy(model)
    assert rotate_(model) is model
    assert error(model, whole) < 1e-5
    rotate_(model)
    assert error(model, whole) < 1e-5
    # and without its counterpart it would
    integers_(model)[0].rotation = nn.Identity()
    assert error(model, whole) > 0.1


def test_everything_is_rounded_a_little():
    model = stack()
    whole = copy.deepcopy(model)
    assert Quamba().apply(model, tokens()) is model
    assert 1e-4 < error(model, whole) < 0.1
    for mixer in integers_(model):
        assert all(mixer.point(name).scale.ndim == 0 for name in mixer.points)
        plain = {name for name, part in mixer.weights.items() if not isinstance(part, Codes)}
        assert plain == {f"conv_bias{way}" for way in mixer.ways}
        assert all(part.bits == 8 for part in mixer.weights.values() if isinstance(part, Codes))


def test_clipping_gives_up_the_largest():
    model, wide = stack(), stack()
    Quamba(percentile=0.9).apply(model, tokens())
    Quamba(percentile=1.0).apply(wide, tokens())
    narrow, full = (integers_(m)[0] for m in (model, wide))
    for way in ("", "_b"):
        assert narrow.point(f"u{way}").scale < 0.8 * full.point(f"u{way}").scale
    assert narrow.point("x").scale == full.point("x").scale


def test_rotation_helps_where_a_channel_stands_out():
    model = stack()
    with torch.no_grad():
        for mixer in model:
            mixer.D[3] = 20.0
            mixer.out_proj.weight[:, 3] /= 20.0
    errors = []
    for config in (Quamba(percentile=1.0, rotate=False), Quamba(percentile=1.0)):
        rounded = config.apply(copy.deepcopy(model), tokens())
        errors.append(error(rounded, model))
    assert errors[1] < 0.5 * errors[0]


def test_batches_and_one_tensor_calibrate_alike():
    models = [stack(), stack()]
    Quamba().apply(models[0], tokens())
    Quamba().apply(models[1], (batch for batch in tokens().split(32)))
    assert torch.equal(models[0](tokens()), models[1](tokens()))


def test_the_state_can_be_saved_with_the_codes():
    model = Quamba().apply(stack(), tokens())
    again = Quamba().apply(stack(), tokens() * 3)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(tokens()), model(tokens()))


def test_once_is_enough():
    model = Quamba().apply(stack(), tokens())
    with pytest.raises(ValueError, match="model must be in floating point, got one that is quantised"):
        Quamba().apply(model, tokens())


@pytest.mark.parametrize("percentile", [0.0, -1.0, 1.5])
def test_the_percentile_is_a_share(percentile):
    with pytest.raises(ValueError, match=r"percentile must be in \(0, 1\], got .*; 1 clips nothing"):
        Quamba(percentile=percentile)
