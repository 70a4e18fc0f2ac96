import math

import pytest
import torch
from torch import nn

from foveal.nn import isp
from foveal.nn.dynamic_isp import PARAMETERS, START, DynamicISP, blur, processed

OFF = -40.0  # makes a sigmoid zero


def drawn(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def parameters(**values):
    """Parameters of stages that do nothing, but for some."""
    p = torch.zeros(1, PARAMETERS, dtype=torch.float64)
    places = {"denoise": 0, "red": 1, "green": 2, "blue": 3, "gamma": 10, "contrast": 11, "sharpen": 12}
    for name, value in {"denoise": OFF, "sharpen": OFF, **values}.items():
        p[0, places[name]] = value
    return p


def model(*, controlled=True):
    torch.manual_seed(0)
    net = DynamicISP(
        nn.Conv2d(3, 4, 3), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), 4, hidden=8, controlled=controlled
    )
    if controlled:
        nn.init.normal_(net.controller[2].weight)
        nn.init.ones_(net.controller[0].bias)
    return net.double()


def test_stages_that_do_nothing_leave_the_demosaiced_picture():
    raw = drawn(2, 1, 5, 7)
    wanted = isp.demosaic(raw, method="bilinear")
    torch.testing.assert_close(processed(raw, parameters().expand(2, -1)), wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("values", "stage"),
    [
        ({"denoise": 0.0}, lambda x: (x + blur(x)) / 2),
        ({"red": math.log(2)}, lambda x: torch.cat([2 * x[:, :1], x[:, 1:]], 1).clamp(max=1)),
        ({"gamma": math.log(2)}, torch.sqrt),
        ({"contrast": 40.0}, lambda x: 3 * x**2 - 2 * x**3),
        ({"sharpen": 0.0}, lambda x: 2 * x - blur(x)),
    ],
)
def test_each_stage_alone_by_its_formula(values, stage):
    raw = drawn(1, 1, 6, 5)
    x = isp.demosaic(raw, method="bilinear")
    torch.testing.assert_close(processed(raw, parameters(**values)), stage(x), rtol=0, atol=1e-9)


def test_the_colour_matrix_takes_its_other_entries_row_by_row():
    p = parameters()
    p[0, 4:10] = torch.tensor([0.1, -0.2, 0.05, 0.0, -0.1, 0.3], dtype=torch.float64)
    matrix = torch.tensor([[1.1, 0.1, -0.2], [0.05, 0.95, 0.0], [-0.1, 0.3, 0.8]], dtype=torch.float64)
    raw = 0.3 + 0.2 * drawn(1, 1, 4, 4)
    wanted = isp.colour_matrix(isp.demosaic(raw, method="bilinear"), matrix)
    torch.testing.assert_close(processed(raw, p), wanted, rtol=0, atol=1e-9)


def test_blurring_keeps_a_constant_and_is_the_gaussian():
    torch.testing.assert_close(blur(torch.full((1, 2, 3, 4), 0.3)), torch.full((1, 2, 3, 4), 0.3))
    point = torch.zeros(1, 1, 9, 9)
    point[..., 4, 4] = 1
    spread = blur(point)[0, 0]
    assert spread[4, 6] / spread[4, 4] == pytest.approx(math.exp(-2))
    assert spread[5, 5] / spread[4, 4] == pytest.approx(math.exp(-1))


def test_the_last_frame_alone_sets_the_next_ones_parameters():
    net, frames = model(), drawn(3, 2, 1, 6, 8)
    results = net(frames)
    p = net.start(2)
    torch.testing.assert_close(p, torch.tensor(START).double().expand(2, -1), rtol=0, atol=0)
    for t in range(3):
        features = net.body(processed(frames[t], p))
        torch.testing.assert_close(results[t], net.head(features))
        p = net.base + net.controller(features.mean((2, 3)))
    changed = frames.clone()
    changed[1, 0] = 0.0
    after = net(changed)
    assert torch.equal(after[0], results[0])
    assert not torch.allclose(after[2, 0], results[2, 0])
    assert torch.equal(after[2, 1], results[2, 1])


def test_without_control_or_before_training_every_frame_is_developed_alike():
    frames = drawn(1, 2, 1, 6, 8).expand(3, -1, -1, -1, -1)
    for net in (model(controlled=False), model()):
        if net.controller is not None:
            nn.init.zeros_(net.controller[2].weight)
            nn.init.zeros_(net.controller[2].bias)
        results = net(frames)
        assert torch.equal(results[0], results[2])


def test_gradients_reach_base_values_controller_and_network():
    net = model()
    net(0.1 + 0.3 * drawn(2, 2, 1, 6, 8))[1].square().sum().backward()
    assert all(value.grad is not None and value.grad.abs().max() > 0 for value in net.parameters())


def test_no_frames_raise():
    with pytest.raises(ValueError, match=r"frames must be \(T, B, 1, H, W\), T at least 1, got \(2, 1, 6, 8\)"):
        model()(torch.zeros(2, 1, 6, 8))
