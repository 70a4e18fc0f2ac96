import pytest
import torch

from foveal.models.dense.mhs_vm import (
    PATTERNS,
    MHSUNet,
    MultiHeadScan,
    from_authors,
    mhs_unet,
    pattern,
    route_attention,
    vm_unet,
)
from foveal.ops import selective_scan

TINY = {"dim": 8, "depths": (1, 1), "depths_up": (1, 1), "state": 2}


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


def authors(dim, depths, depths_up, heads=4, state=16, classes=1):
    """Names and shapes in PixDeep/MHS-VM (commit be64b6f), `VMUNet` as configs/config_setting.py says."""

    def layer(name, *shape, bias=True):
        return {f"{name}.weight": shape, **({f"{name}.bias": shape[:1]} if bias else {})}

    def block(at, width):
        part, mixer = width // heads, f"{at}.self_attention"
        rank = -(-part // 16)
        found = layer(f"{at}.ln_1", width) | layer(f"{mixer}.in_proj", 2 * width, width, bias=False)
        found |= layer(f"{mixer}.conv2d", width, 1, 3, 3) | layer(f"{mixer}.mhs.x_ssproj", width, width, bias=False)
        found |= {f"{mixer}.mhs.x_ssproj_W": (width, width)}
        for head in "CXSZ"[:heads]:
            for engine in ("mambaeng", "scanning.seq2seq_engine"):
                s6 = f"{mixer}.mhs.scanhead_{head}.{engine}"
                found |= {f"{s6}.x_proj_weight": (4, rank + 2 * state, part), f"{s6}.dt_projs_weight": (4, part, rank)}
                found |= {f"{s6}.dt_projs_bias": (4, part), f"{s6}.A_logs": (4 * part, state), f"{s6}.Ds": (4 * part,)}
        found |= layer(f"{mixer}.mhs.cat_norm", width) | layer(f"{mixer}.mhs.y_proj", width, width, bias=False)
        return found | layer(f"{mixer}.out_norm", width)

    found = layer("patch_embed.proj", dim, 3, 4, 4) | layer("patch_embed.norm", dim)
    for i, depth in enumerate(depths):
        for j in range(depth):
            found |= block(f"layers.{i}.blocks.{j}", dim << i)
        if i < len(depths) - 1:
            at, wide = f"layers.{i}.downsample", 4 * dim << i
            found |= layer(f"{at}.reduction", wide // 2, wide, bias=False) | layer(f"{at}.norm", wide)
    for i, depth in enumerate(depths_up):
        width = dim << (len(depths) - 1 - i)
        if i:
            at = f"layers_up.{i}.upsample"
            found |= layer(f"{at}.expand", 4 * width, 2 * width, bias=False) | layer(f"{at}.norm", width)
        for j in range(depth):
            found |= block(f"layers_up.{i}.blocks.{j}", width)
    found |= layer("final_up.expand", 4 * dim, dim, bias=False) | layer("final_up.norm", dim // 4)
    found |= layer("final_conv", classes, dim // 4, 1, 1)
    return {f"vmunet.{name}": shape for name, shape in found.items()}


@pytest.mark.parametrize("heads", [3, 4])
def test_weights_of_the_authors_load(heads):
    with torch.device("meta"):
        shapes = authors(96, (2, 2, 2, 2), (2, 2, 2, 1), heads)
        theirs = {name: torch.empty(shape) for name, shape in shapes.items()}
        mhs_unet(num_heads=heads).load_state_dict(from_authors(theirs), assign=True)


def test_each_weight_of_the_authors_finds_its_place():
    shapes = authors(8, (1, 1), (1, 1), state=2)
    theirs = {name: torch.full(shape, float(i)) for i, (name, shape) in enumerate(shapes.items())}
    at = "vmunet.layers.1.blocks.0.self_attention"
    theirs[f"{at}.mhs.scanhead_S.mambaeng.dt_projs_bias"] = torch.arange(4.0)[:, None].expand(4, 4)
    theirs["vmunet.layers_up.1.upsample.expand.weight"] = torch.arange(32.0)[:, None].expand(32, 16)
    network = MHSUNet(dim=8, depths=(1, 1), depths_up=(1, 1), state=2)
    network.load_state_dict(from_authors(theirs))
    mixer = network.stages[1].blocks[0].mixer
    # routes of the third head: theirs alternate between forward and backward
    assert mixer.s6.dt_bias.unflatten(0, (4, 4, 4))[2, :, 0].tolist() == [0, 2, 1, 3]
    # pixels of a cell first, eight channels each
    assert network.ups[1].enter.expand.weight[:5, 0].flatten().tolist() == [0, 8, 16, 24, 1]
    for ours, name in (
        (mixer.s6.A_log[:16], f"{at}.mhs.scanhead_C.mambaeng.A_logs"),
        (mixer.joined_norm.bias, f"{at}.mhs.cat_norm.bias"),
        (mixer.norm.bias, f"{at}.out_norm.bias"),
        (network.stages[1].enter.norm.weight, "vmunet.layers.0.downsample.norm.weight"),
        (network.final.norm.bias, "vmunet.final_up.norm.bias"),
    ):
        assert set(ours.flatten().tolist()) == {theirs[name].max().item()}, name
