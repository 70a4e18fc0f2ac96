import numpy as np
import pytest
import torch

from foveal.models.restore.luma_clean import CHROMA, TO_CHROMA, LumaClean, luma_clean_balanced, luma_clean_fast
from foveal.models.restore.luma_sr import LUMINANCE, luma_sr_fast
from foveal.nn.equivariant import MOVES, moved

LEVEL = (0.8, 0.3, 0.2)


def changed(scale=4, **arguments):
    """A small network whose every parameter has left its start."""
    torch.manual_seed(0)
    network = LumaClean(scale, **{"channels": 8, "depth": 2, "expand": 8} | arguments)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return network.eval()


def told(*levels):
    return torch.tensor(levels)


@pytest.mark.parametrize(
    ("scale", "arguments"), [(4, {}), (3, {"base_kernel": 3}), (2, {"equivariant": True}), (2, {"depth": 0})]
)
def test_plain_form_of_a_level_equals_the_network_inside_its_margin(scale, arguments):
    network = changed(scale, **arguments)
    x = torch.rand(1, 3, 30, 25)
    m = network.margin
    for level in ((0.0, 0.0, 0.0), LEVEL):
        inside = network(x, told(level))[..., scale * m : -scale * m, scale * m : -scale * m]
        torch.testing.assert_close(network.plain(level)(x), inside, atol=1e-5, rtol=0)


def test_each_picture_of_a_batch_has_its_own_level():
    network, x = changed(), torch.rand(2, 3, 12, 10)
    both = network(x, told(LEVEL, (0.0, 1.0, 0.0)))
    torch.testing.assert_close(both[:1], network(x[:1], told(LEVEL)))
    torch.testing.assert_close(both[1:], network(x[1:], told((0.0, 1.0, 0.0))))
    assert (network(x[:1], told(LEVEL)) - network(x[:1])).abs().max() > 1e-3


@pytest.mark.parametrize("level", [(0.0, 0.0, 0.0), LEVEL, (2.0, 3.0, 3.0)])
def test_flat_stays_flat_at_every_level(level):
    network = changed()
    m = network.margin
    x = torch.tensor([0.9, 0.1, 0.4]).view(1, 3, 1, 1).expand(1, 3, 3 + 2 * m, 2 + 2 * m)
    torch.testing.assert_close(network.plain(level)(x), x[..., :1, :1].expand(1, 3, 12, 8), atol=1e-5, rtol=0)


def test_what_is_done_to_colour_leaves_luminance():
    assert (LUMINANCE @ CHROMA).abs().max() < 1e-4
    torch.testing.assert_close(TO_CHROMA @ CHROMA, torch.eye(2), atol=1e-4, rtol=0)


def test_the_filter_of_a_level_is_alike_each_way_and_sums_to_nothing():
    kernels = changed().filters(told(LEVEL, (0.0, 0.0, 1.5)))
    torch.testing.assert_close(kernels.sum((1, 2)), torch.zeros(2), atol=1e-5, rtol=0)
    for move in MOVES:
        torch.testing.assert_close(moved(kernels, move), kernels)
    assert (kernels[0] - kernels[1]).abs().max() > 1e-4


def test_luminance_is_that_of_the_colours():
    network, x, weights = changed(), torch.rand(1, 3, 9, 8), torch.tensor([0.3, 0.6, 0.1])
    mixed = torch.einsum("bchw,c->bhw", network(x, told(LEVEL)), weights)[:, None]
    torch.testing.assert_close(network.luminance(x, weights, told(LEVEL)), mixed)


def test_it_begins_as_the_network_whose_weights_it_takes():
    torch.manual_seed(0)
    before = luma_sr_fast(4)
    network = luma_clean_fast(4)
    network.load_state_dict(before.state_dict(), strict=False)
    with torch.no_grad():
        network.chroma.weight.zero_()
        x = torch.rand(1, 3, 14, 11)
        torch.testing.assert_close(network(x, told(LEVEL)), before(x), atol=1e-5, rtol=0)


def test_an_equivariant_network_is_one():
    network, x = changed(equivariant=True), torch.rand(1, 3, 12, 9)
    for move in MOVES:
        made = network(moved(x, move), told(LEVEL))
        torch.testing.assert_close(made, moved(network(x, told(LEVEL)), move), atol=1e-5, rtol=0)


@pytest.mark.parametrize("make", [luma_clean_fast, luma_clean_balanced])
def test_every_parameter_learns(make):
    torch.manual_seed(0)
    network = make(2, depth=1)
    detail, chroma = network.parts(torch.rand(2, 3, 12, 12), told(LEVEL, (0.1, 1.0, 1.0)))
    (detail.square().sum() + chroma.square().sum()).backward()
    silent = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().any()]
    # The first layers of the two small networks learn once their last ones have left 0; `parts` has no upsampler.
    assert set(silent) == {"base", "tell.0.weight", "tell.0.bias", "calm.0.weight", "calm.0.bias"}


def test_it_takes_as_many_products_as_before_but_for_colour():
    plain = luma_clean_balanced(4, channels=64, depth=7).plain(LEVEL)
    products = sum(int(np.prod(m.weight.shape)) for m in plain.modules() if isinstance(m, torch.nn.Conv2d))
    before = sum(
        int(np.prod(m.weight.shape)) for m in luma_sr_fast(4, channels=64, depth=7).plain().modules()
        if isinstance(m, torch.nn.Conv2d)
    )  # fmt: skip
    assert products < 1.006 * before


def test_luminance_and_colour_apart_are_those_of_the_result():
    network, x = changed(), torch.rand(1, 3, 13, 12)
    luminance, chroma = network.separate(x, told(LEVEL))
    result = network(x, told(LEVEL))
    torch.testing.assert_close(luminance[0, 0], torch.einsum("chw,c->hw", result[0], LUMINANCE), atol=1e-4, rtol=0)
    clean = torch.einsum("ci,bihw->bchw", CHROMA, chroma) + torch.einsum("bchw,c->bhw", x, LUMINANCE)[:, None]
    linear = network._upsampled(clean[:, :1])
    of_red = torch.nn.functional.pixel_shuffle(linear - network._upsampled(clean[:, 1:2]), 4)
    torch.testing.assert_close(of_red, result[:, :1] - result[:, 1:2], atol=1e-4, rtol=0)
