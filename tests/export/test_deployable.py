import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveal.errors import FovealError
from foveal.export.deployable import (
    WIDEST,
    Deployable,
    ExportError,
    deployed,
    effective_radius,
    receptive_radius,
)
from foveal.models.restore.hi_mamba import HiMamba
from foveal.models.restore.luma_sr import LumaSR
from foveal.models.restore.quicksrnet import QuickSRNet
from foveal.models.restore.safmn import SAFMN
from foveal.models.restore.serpent import Serpent
from foveal.models.restore.sesr import SESR


class Same(nn.Module):
    """A padded network: 5×5, then 3×3; radius 3."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Conv2d(3, 4, 5, padding=2)
        self.b = nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


class Global(nn.Module):
    """Three pixels on each side, and a hundredth of the mean of all."""

    def __init__(self, share=0.01):
        super().__init__()
        self.share = share

    def forward(self, x):
        near = F.avg_pool2d(x, 7, stride=1, padding=3)
        return near + self.share * x.mean((2, 3), keepdim=True)


class Fading(nn.Module):
    """Each pixel's weight halves from one column to the next, without an end."""

    tiling = "overlap"

    def forward(self, x):
        columns = torch.arange(x.shape[3])
        return x @ 0.5 ** (columns[:, None] - columns).abs().to(x.dtype)


def saying(model, **members):
    for name, value in members.items():
        setattr(model, name, value)
    return model


def test_radius_is_measured():
    assert receptive_radius(Same(), largest=16) == 3
    assert receptive_radius(nn.Upsample(scale_factor=2), largest=4) == 0


def test_radius_with_pooling_counts_every_position():
    pooled = nn.Sequential(nn.AvgPool2d(4), nn.Upsample(scale_factor=4))
    assert receptive_radius(pooled, largest=8, multiple=4) == 3


def test_global_network_has_no_radius():
    with pytest.raises(
        ExportError, match=r"receptive field reaches 6 .* for a global field, let the network say tiling"
    ):
        receptive_radius(Global(), largest=6)
    assert issubclass(ExportError, FovealError)


def test_effective_radius_is_where_the_weight_lies():
    radius, within = effective_radius(Fading(), largest=32)
    # Both sides hold 2·0.5^k of the weight at distance k, of 3 in all: beyond 10 less than a thousandth lies.
    assert radius == 10
    assert 0.999 <= within < 0.9995
    assert effective_radius(Fading(), share=0.9, largest=32)[0] == 3
    assert effective_radius(Same(), largest=8)[0] <= 3
    with pytest.raises(ValueError, match=r"share must be in \(0, 1\], got 0"):
        effective_radius(Fading(), share=0)


def test_measuring_draws_no_random_numbers_of_others():
    model = Same()
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    with torch.no_grad():
        receptive_radius(model, largest=8)
    assert torch.equal(torch.rand(2), expected)


def test_padded_network_is_taken_as_it_is():
    form = deployed(Same())
    assert (form.margin, form.trims, form.tiling, form.within) == (3, False, "exact", 1.0)
    assert (form.multiple, form.minimum, form.equivariant) == (1, 1, False)


def test_plain_form_trims_its_margin():
    form = deployed(LumaSR(3, channels=8, depth=1, expand=4, equivariant=True))
    assert (form.margin, form.trims, form.tiling, form.equivariant) == (3, True, "exact", True)
    assert form.network(torch.rand(1, 3, 12, 11)).shape == (1, 3, 18, 15)


def test_collapsed_and_folded_forms():
    sesr = deployed(SESR(scale=2))
    assert type(sesr.network.first) is nn.Conv2d
    assert (sesr.margin, sesr.trims) == (9, False)
    quick = deployed(QuickSRNet(scale=2))
    assert quick.network.folded
    assert deployed(SAFMN(2, dim=4, depth=1)).multiple == 8


def test_unbounded_field_becomes_overlapping_tiles():
    form = deployed(Fading())
    assert (form.margin, form.tiling, form.trims) == (10, "overlap", False)
    form = deployed(Global())  # says nothing: found out
    assert form.tiling == "overlap"
    assert 3 <= form.margin <= WIDEST
    form = deployed(Global(share=10.0))
    assert form.margin == WIDEST
    assert form.within < 0.5, "far pixels count as much as near ones, and the report says so"
    form = deployed(saying(Global(), tiling="overlap", margin=12))
    assert (form.margin, form.tiling, form.within) == (12, "overlap", 1.0)


def test_networks_that_scan_say_so():
    form = deployed(HiMamba(2, dim=4, groups=1, depth=1, state=1, region=2))
    assert (form.tiling, form.multiple) == ("overlap", 2)
    form = deployed(saying(Serpent(dim=4, depths=(1,), state=1), margin=16))
    assert (form.tiling, form.multiple, form.margin) == ("overlap", 2, 16)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"margin": -1}, r"Same.margin must be a whole number of at least 0, got -1; correct it in the network"),
        ({"multiple": 0}, "Same.multiple must be a whole number of at least 1, got 0"),
        ({"minimum": 2.5}, "Same.minimum must be a whole number of at least 1, got 2.5"),
        ({"tiling": "blend"}, "Same.tiling must be one of exact, overlap, got 'blend'; correct it in the network"),
        ({"plain": Same}, "Same has a plain form and no margin; add what it trims as `margin`"),
        (
            {"plain": Same, "margin": 3, "tiling": "overlap"},
            "and says that they overlap; leave out `plain` or `tiling`",
        ),
    ],
)
def test_members_that_cannot_be(members, message):
    with pytest.raises(ExportError, match=message):
        deployed(saying(Same(), **members))


def test_a_network_that_is_less_exact_than_it_says():
    with pytest.raises(
        ExportError, match="receptive field reaches 128 pixels or more; foveal joins tiles exactly up to"
    ):
        deployed(saying(Global(), tiling="exact"))


def test_every_member_has_a_value_for_networks_without_it():
    for name in Deployable.__annotations__:
        assert hasattr(Deployable, name)
