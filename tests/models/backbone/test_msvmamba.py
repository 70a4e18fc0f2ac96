import pytest
import torch
import torch.nn.functional as F

from foveal.models.backbone.msvmamba import MS2D, ConvFFN, _tokens, msvmamba_nano


def test_as_many_parameters_as_the_authors_network():
    with torch.device("meta"):
        assert sum(p.numel() for p in msvmamba_nano().parameters()) == 6_864_136


def test_seven_quarters_of_the_tokens():
    assert _tokens(8, 6) == 48 * 7 // 4
    # an odd side is rounded up before the coarse routes
    assert _tokens(5, 3) == 15 + 3 * 3 * 2


@pytest.mark.parametrize("side", [(1, 1), (3, 2), (4, 5)])
def test_coarse_routes_are_one_sequence(side):
    torch.manual_seed(0)
    mixer, x = MS2D(4, state=2).double(), torch.randn(2, 8, *side, dtype=torch.float64)
    place = torch.arange(side[0] * side[1]).view(side)
    way = torch.cat([place.flatten().flip(0), place.T.flatten(), place.T.flatten().flip(0)])
    y = mixer.coarse(x.flatten(2)[:, None, :, way])[:, 0]
    y = F.layer_norm(y.mT, (8,)).mT
    expected = torch.zeros(2, 8, place.numel(), dtype=torch.float64).index_add(2, way, y)
    torch.testing.assert_close(mixer.scan_coarse(x), expected.view(x.shape), rtol=0, atol=1e-12)


def test_the_mixer_is_its_formula():
    torch.manual_seed(0)
    mixer, u = MS2D(4).double(), torch.randn(1, 4, 6, 5, dtype=torch.float64)
    x, z = mixer.in_proj(u).chunk(2, 1)
    fine = F.silu(mixer.conv(x)).flatten(2)[:, None]
    coarse = F.silu(F.conv2d(x, mixer.shrink.weight, mixer.shrink.bias, stride=2, padding=3, groups=8))
    enlarged = F.interpolate(mixer.scan_coarse(coarse), size=(6, 5), mode="bilinear")
    y = mixer.norm(mixer.s6(fine)[:, 0].unflatten(2, (6, 5))) + enlarged
    squeezed = mixer.excite.fc2(F.relu(mixer.excite.fc1(y.mean((2, 3), keepdim=True))))
    torch.testing.assert_close(mixer(u), mixer.out_proj(y * squeezed.sigmoid() * F.silu(z)))


def test_the_feed_forward_network_convolves_beside_a_shortcut():
    torch.manual_seed(0)
    ffn, x = ConvFFN(4), torch.randn(2, 4, 5, 3)
    wide = ffn.widen(x)
    torch.testing.assert_close(ffn(x), ffn.narrow(F.gelu(wide + ffn.conv(wide))))
    assert ffn.conv.weight.shape == (8, 1, 3, 3)


@pytest.mark.parametrize("side", [(33, 40), (70, 57)])
def test_any_size(side):
    network = msvmamba_nano(dim=4, depths=(1, 1, 1, 1), num_classes=3).eval()
    assert network(torch.rand(1, 3, *side)).shape == (1, 3)
    maps = network.forward_intermediates(torch.rand(1, 3, *side), intermediates_only=True)
    assert [m.shape[1] for m in maps] == [4, 8, 16, 32]
