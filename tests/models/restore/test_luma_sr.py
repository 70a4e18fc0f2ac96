import pytest
import torch
import torch.nn.functional as F

from foveal.images.resize import imresize
from foveal.models.restore.luma_sr import LumaSR, luma_sr_balanced, luma_sr_fast
from foveal.nn.collapsible import identity_kernel
from foveal.nn.equivariant import MOVES, moved


def changed(scale=4, **arguments):
    """A small network whose every parameter has left its start."""
    torch.manual_seed(0)
    network = LumaSR(scale, **{"channels": 8, "depth": 2, "expand": 8} | arguments)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return network.eval()


@pytest.mark.parametrize(("scale", "height", "width"), [(2, 1, 1), (3, 7, 63), (4, 12, 5)])
def test_shapes_and_scale(scale, height, width):
    assert changed(scale)(torch.rand(2, 3, height, width)).shape == (2, 3, scale * height, scale * width)
    plain = changed(scale).plain()
    m = changed(scale).margin
    assert plain(torch.rand(1, 3, height + 2 * m, width + 2 * m)).shape == (1, 3, scale * height, scale * width)


@pytest.mark.parametrize(
    ("scale", "arguments"),
    [
        (4, {}),
        (4, {"back_projection": True}),
        (3, {"back_projection": True, "base_kernel": 3}),
        (2, {"back_projection": True, "depth": 0}),
    ],
)
def test_plain_form_equals_the_network_inside_its_margin(scale, arguments):
    network = changed(scale, **arguments)
    x = torch.rand(1, 3, 30, 25)
    m = network.margin
    inside = network(x)[..., scale * m : -scale * m, scale * m : -scale * m]
    torch.testing.assert_close(network.plain()(x), inside, atol=1e-5, rtol=0)


def test_back_projection_makes_the_luminance_agree_with_the_small_picture():
    x = F.interpolate(torch.rand(1, 3, 12, 10), scale_factor=4, mode="bicubic")
    errors = []
    for back in (False, True):
        network = changed(back_projection=back)
        m = network.margin
        weights = torch.tensor([65.481, 128.553, 24.966]) / 219
        with torch.no_grad():
            made = torch.einsum("bchw,c->bhw", network.plain()(x), weights)[0].numpy()
        low = torch.einsum("bchw,c->bhw", x, weights)[0, m:-m, m:-m].numpy()
        errors.append(abs(imresize(made, 0.25) - low)[3:-3, 3:-3].mean())
    assert errors[1] < 0.2 * errors[0]


def test_without_back_projection_it_is_the_network_before():
    network, before = changed(back_projection=True), changed()
    assert network.margin == before.margin + 4
    x = torch.rand(1, 3, 2 * before.margin + 5, 2 * before.margin + 6)
    plain = network.plain(back_projection=False)
    assert plain.margin == before.margin
    assert torch.equal(plain(x), before.plain()(x))


@pytest.mark.parametrize("back_projection", [False, True])
def test_margin_is_the_radius_of_the_receptive_field(back_projection):
    network = changed(back_projection=back_projection).plain()
    m = changed(back_projection=back_projection).margin
    x = torch.rand(1, 3, 2 * m + 1, 2 * m + 1, requires_grad=True)
    network(x).sum().backward()
    assert (x.grad[0, :, 0, 0].abs() > 0).any(), "the corner of the margin reaches the output"


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_luminance_is_the_weighted_sum_of_the_colours(scale):
    network, weights = changed(scale, back_projection=scale != 3), torch.tensor([0.3, 0.5, 0.1])
    x = torch.rand(2, 3, 9, 7)
    expected = torch.einsum("bchw,c->bhw", network(x), weights)[:, None]
    torch.testing.assert_close(network.luminance(x, weights), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("colour", [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.9, 0.1, 0.5)])
@pytest.mark.parametrize("back_projection", [False, True])
def test_flat_stays_flat(colour, back_projection):
    network = changed(back_projection=back_projection)
    m = network.margin
    x = torch.tensor(colour).view(1, 3, 1, 1).expand(1, 3, 2 * m + 3, 2 * m + 4)
    out = network.plain()(x)
    assert (out - x[..., :1, :1]).abs().max() < 1e-5


@pytest.mark.parametrize("back_projection", [False, True])
def test_grey_stays_grey(back_projection):
    network = changed(back_projection=back_projection)
    m = network.margin
    out = network.plain()(torch.rand(1, 1, 2 * m + 9, 2 * m + 7).expand(1, 3, -1, -1))
    assert (out - out.mean(1, keepdim=True)).abs().max() < 1e-5


def test_colours_get_the_same_detail():
    network = changed()
    m = network.margin
    x = torch.rand(1, 3, 30, 30)
    with torch.no_grad():
        out = network.plain()(x)
        for p in network.tail.parameters():
            p.zero_()
        detail = out - network.plain()(x)
    assert detail.abs().max() > 1e-3
    torch.testing.assert_close(detail[:, :1].expand_as(detail), detail, atol=1e-5, rtol=0)
    assert out.shape[-1] == 4 * (30 - 2 * m)


def test_every_parameter_learns():
    network = changed(2)
    network(torch.rand(1, 3, 12, 12)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_variations_count_their_parameters():
    assert sum(p.numel() for p in luma_sr_fast(4).plain().parameters()) == 448 + 6 * 2320 + 2320 + 3600 + 768
    assert sum(p.numel() for p in luma_sr_balanced(4).plain().parameters()) == 896 + 8 * 9248 + 4624 + 3600 + 768


@pytest.mark.parametrize("equivariant", [False, True])
def test_on_the_meta_device(equivariant):
    with torch.device("meta"):
        network = LumaSR(2, channels=8, depth=1, equivariant=equivariant, back_projection=True)
    assert all(tensor.is_meta for tensor in (*network.parameters(), *network.buffers()))
    assert network(torch.empty(1, 3, 6, 5, device="meta")).shape == (1, 3, 12, 10)


def test_scale_out_of_range():
    with pytest.raises(ValueError, match="scale must be 2, 3 or 4, got 5"):
        LumaSR(5)


@pytest.mark.parametrize("expand", [0, 4])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_equivariant_network_moves_with_the_picture(scale, expand):
    network = changed(scale, channels=16, expand=expand, equivariant=True, back_projection=scale == 4)
    x = torch.rand(1, 3, 12, 15)
    with torch.no_grad():
        y = network(x)
        for move in MOVES:
            torch.testing.assert_close(network(moved(x, move)), moved(y, move), atol=1e-5, rtol=0)
        m = network.margin
        inside = network.plain()(F.pad(x, (m, m, m, m), mode="reflect"))
        mirrored = network.plain()(F.pad(x.mT, (m, m, m, m), mode="reflect"))
    torch.testing.assert_close(mirrored, inside.mT, atol=1e-5, rtol=0)


@pytest.mark.parametrize("expand", [0, 64])
def test_equivariant_network_begins_at_the_size_of_another(expand):
    torch.manual_seed(0)
    free, tied = (LumaSR(4, channels=64, depth=1, expand=expand, equivariant=tied).plain() for tied in (False, True))
    for k, still in ((0, 0), (2, identity_kernel(64, 3)), (4, 0)):
        spread = (free.layers[k].weight - still).std().item()
        assert (tied.layers[k].weight - still).std().item() == pytest.approx(spread, rel=0.2)


@pytest.mark.parametrize("expand", [0, 8])
@pytest.mark.parametrize("depth", [4, 5, 9])
def test_a_deeper_network_begins_as_the_one_before(depth, expand):
    torch.manual_seed(0)
    before = LumaSR(2, channels=8, depth=4, expand=expand)
    with torch.no_grad():
        for parameter in before.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    after = LumaSR(2, channels=8, depth=depth, expand=expand)
    after.load_state_dict(after.deepened(before.state_dict()))
    x, m = torch.rand(1, 3, 32, 30), after.margin
    with torch.no_grad():
        inside = (..., slice(2 * m, -2 * m), slice(2 * m, -2 * m))
        assert torch.allclose(after(x)[inside], before(x)[inside], atol=1e-5)
    after(x).square().sum().backward()
    assert all(
        p.grad is not None and p.grad.abs().max() > 0
        for n, p in after.named_parameters()
        if not expand or "widen" not in n
    )
    shallower = LumaSR(2, channels=8, depth=2, expand=expand)
    assert shallower.deepened(before.state_dict()).keys() == before.state_dict().keys()
