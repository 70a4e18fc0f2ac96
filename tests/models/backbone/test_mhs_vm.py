import pytest
import torch

from foveal.models.backbone.mhs_vm import METHOD, PATTERNS, MultiHeadScan, mhs_unet, pattern, route_attention, vm_unet
from foveal.ops import selective_scan

TINY = {"dim": 8, "depths": (1, 1), "depths_up": (1, 1), "state": 2}


@pytest.mark.parametrize("kind", ["equal", "smaller"])
def test_claims_that_cost_nothing_hold(kind):
    (claim,) = [claim for claim in METHOD.claims if claim.kind == kind]
    ours, theirs = claim.check["ours"](), claim.check["theirs"]()
    assert torch.equal(ours, theirs) if kind == "equal" else ours < theirs


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 1), (3, 4), (7, 5)])
def test_each_route_visits_every_position_once(name, size):
    ways = pattern(name, *size)
    assert ways.shape == (4, size[0] * size[1])
    assert all(way.sort().values.tolist() == list(range(size[0] * size[1])) for way in ways)
    assert torch.equal(ways[2:], ways[:2].flip(1))


def test_routes_by_hand():
    assert pattern("turning", 2, 3)[:2].tolist() == [[0, 1, 2, 5, 4, 3], [0, 3, 4, 1, 2, 5]]
    assert pattern("zigzag", 3, 3)[:2].tolist() == [[0, 1, 3, 6, 4, 2, 5, 7, 8], [2, 1, 5, 8, 4, 0, 3, 7, 6]]
    assert pattern("spiral", 3, 3)[:2].tolist() == [[0, 1, 2, 5, 8, 7, 6, 3, 4], [6, 7, 8, 5, 2, 1, 0, 3, 4]]
    assert pattern("raster", 2, 3)[:2].tolist() == [[0, 1, 2, 3, 4, 5], [0, 3, 1, 4, 2, 5]]


@pytest.mark.parametrize("name", ["turning", "spiral"])
def test_some_routes_step_to_neighbours_only(name):
    for way in pattern(name, 5, 7):
        steps = (way // 7).diff().abs() + (way % 7).diff().abs()
        assert steps.max() == 1


def test_an_unknown_pattern_raises():
    with pytest.raises(ValueError, match="pattern must be one of turning, zigzag, spiral, raster, got 'knot'"):
        pattern("knot", 2, 2)


def test_route_attention_by_hand():
    y = torch.tensor([1.0, 2.0, 3.0, 6.0]).view(1, 4, 1)
    deviation = (14 / 3) ** 0.5  # squares of -2, -1, 0, 3 over three
    want = 12 * deviation / (2 + 1e-5)  # the mean of 0, 1, 2, 5 is 2
    torch.testing.assert_close(route_attention(y).item(), want)
    torch.testing.assert_close(route_attention(y, 0.5).item(), want - 6)
    assert route_attention(y, 2.0).item() == 0


def test_routes_that_agree_pass_nothing_and_have_gradients():
    y = torch.full((1, 4, 3), 2.0, requires_grad=True)
    out = route_attention(y)
    assert out.abs().max() < 1e-5
    out.sum().backward()
    assert y.grad.isfinite().all()


def test_heads_scan_their_own_channels_along_their_own_routes():
    torch.manual_seed(0)
    mixer, x = MultiHeadScan(6, num_heads=3, state=2), torch.randn(2, 6, 4, 5)
    ours, s6, flat = mixer.scan(x), mixer.s6, x.flatten(2)
    assert ours.shape == x.shape
    for head, name in enumerate(("turning", "zigzag", "spiral")):
        values = []
        for k, way in enumerate(pattern(name, 4, 5)):
            route = 4 * head + k
            u = flat[:, 2 * head : 2 * head + 2, way]
            step, weights_in, weights_out = (s6.x_proj[route] @ u).split([1, 2, 2], 1)
            part = slice(2 * route, 2 * route + 2)
            y = selective_scan(
                u,
                s6.dt_proj[route] @ step,
                -s6.A_log[part].exp(),
                weights_in,
                weights_out,
                s6.D[part],
                delta_bias=s6.dt_bias[part],
                delta_softplus=True,
            )
            back = torch.empty_like(y)
            back[:, :, way] = y
            values.append(back)
        want = route_attention(torch.stack(values, 1))
        torch.testing.assert_close(ours[:, 2 * head : 2 * head + 2].flatten(2), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("dim", "heads"), [(8, 0), (10, 5), (8, 3)])
def test_heads_that_cannot_be_raise(dim, heads):
    with pytest.raises(ValueError, match=f"num_heads must be 1…4 and divide the channels, got {heads} for {dim} chan"):
        MultiHeadScan(dim, num_heads=heads)


@pytest.mark.parametrize("size", [(32, 32), (57, 41), (5, 70)])
@pytest.mark.parametrize("build", [mhs_unet, vm_unet])
def test_any_size(build, size):
    model = build(num_classes=3, **TINY).eval()
    x = torch.rand(1, 3, *size)
    assert model(x).shape == (1, 3, *size)
    model.reset_classifier(0)
    assert model(x).shape == (1, 2, *size)


def test_as_a_backbone_it_gives_the_maps_of_the_way_down():
    model = mhs_unet(**TINY).eval()
    last, maps = model.forward_intermediates(torch.rand(1, 3, 32, 32))
    assert [tuple(m.shape) for m in maps] == [(1, 8, 8, 8), (1, 16, 4, 4)]
    assert torch.equal(last, maps[-1])


def test_maps_of_the_way_down_are_added_on_the_way_up():
    torch.manual_seed(0)
    model, x = mhs_unet(dim=8, depths=(1, 1, 1), depths_up=(1, 1, 1), state=2).eval(), torch.rand(1, 3, 32, 32)
    first = model.stem(x)
    second = model.stages[1].enter(model.stages[0].blocks(first))
    third = model.stages[2].enter(model.stages[1].blocks(second))
    y = model.ups[0](model.stages[2].blocks(third))
    y = model.ups[2](model.ups[1](y + third) + second)
    torch.testing.assert_close(model(x), model.head(model.final(y)))
