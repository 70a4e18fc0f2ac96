import pytest
import timm
import torch
from torch import nn

from foveal.evidence.models.backbone.afc import rival, small
from foveal.models.backbone import afc
from foveal.models.backbone.afc import (
    AFC,
    AliasFreeNorm,
    Polynomial,
    afc_tiny,
    from_authors,
    from_timm,
    low_pass,
    resample,
    resample_reference,
    shift,
)

SMALL = {"dims": (6, 8, 10), "depths": (1, 2, 1), "num_classes": 5}


def drawn(model):
    """Weights at which every part counts."""
    for name, value in model.named_parameters():
        if "_scale" in name:
            nn.init.ones_(value)  # at the scales of the start, squares all but hide the picture
        elif "coef" not in name:
            nn.init.normal_(value, std=0.4 if value.ndim < 2 else value[0].numel() ** -0.5)
    return model.eval()


@pytest.mark.parametrize(
    ("old", "new"), [((6, 8), (12, 16)), ((12, 9), (6, 5)), ((7, 1), (3, 1)), ((5, 6), (5, 6)), ((3, 4), (8, 3))]
)
def test_resampling_is_a_sum_of_waves(old, new):
    torch.manual_seed(0)
    x = torch.randn(2, 3, *old, dtype=torch.float64, requires_grad=True)
    out, want = resample(x, new), resample_reference(x, new)
    torch.testing.assert_close(out, want)
    gradients = [torch.autograd.grad(value.pow(3).sum(), x)[0] for value in (out, want)]
    torch.testing.assert_close(*gradients)


def test_resampling_to_half_is_a_low_pass_and_every_second_pixel():
    torch.manual_seed(0)
    x = torch.randn(1, 2, 12, 16, dtype=torch.float64)
    torch.testing.assert_close(resample(x, (6, 8)), low_pass(x, 0.5)[..., ::2, ::2])
    # up and down again gives the signal without its Nyquist frequency
    torch.testing.assert_close(resample(resample(x, (24, 32)), (12, 16)), low_pass(x, 1.0))


def test_whole_movements_roll_and_fractions_add_up():
    torch.manual_seed(0)
    x = torch.randn(1, 2, 7, 6, dtype=torch.float64)
    torch.testing.assert_close(shift(x, (2, -1)), x.roll((2, -1), (2, 3)))
    x = low_pass(x, 1.0)
    torch.testing.assert_close(shift(shift(x, (0.3, 1.75)), (-1.3, 0.25)), shift(x, (-1, 2)))


def test_the_norm_has_a_mean_per_pixel_and_one_deviation():
    torch.manual_seed(0)
    out = AliasFreeNorm(5)(3 * torch.randn(2, 5, 4, 6) + 1)
    torch.testing.assert_close(out.mean(1), torch.zeros(2, 4, 6), rtol=0, atol=1e-5)
    torch.testing.assert_close(out.square().mean((1, 2, 3)), torch.ones(2))
    assert out.square().mean(1).std() > 0.1


def test_the_polynomial_starts_near_gelu():
    layer, x = Polynomial(3), torch.linspace(-1, 1, 9)[:, None].expand(9, 3)
    with torch.no_grad():
        layer.in_scale.fill_(1)
        layer.out_scale.fill_(1)
    assert (layer(x) - nn.functional.gelu(x)).abs().max() < 0.05
    torch.testing.assert_close(layer(x, x), layer(x))
    layer = Polynomial(1)
    coef = layer.coef[0]
    want = 7 * (coef[0] + coef[1] * 14 + coef[2] * 14 * 21)
    torch.testing.assert_close(layer(torch.full((1, 1), 2.0), torch.full((1, 1), 3.0)), want.view(1, 1))


def picture(size, seed=0):
    """Waves of few and of many periods, in double precision."""
    draw = torch.Generator().manual_seed(seed)
    coarse, fine = (torch.randn(1, 3, *sides, generator=draw, dtype=torch.float64) for sides in ((3, 3), size))
    return low_pass(resample(coarse, size) + 0.5 * fine, 1.0)


@torch.no_grad()
def change(model, size, offset):
    """How far a movement changes the logits, over how far another picture does."""
    still = model(picture(size))
    spread = (model(picture(size, 1)) - still).abs().max()
    assert spread > 1e-3 * still.abs().max()
    return (model(shift(picture(size), offset)) - still).abs().max() / spread


@pytest.mark.parametrize("size", [(32, 48), (40, 20), (19, 23)])
def test_logits_stay_when_the_picture_moves(size):
    torch.manual_seed(0)
    model = drawn(AFC(**SMALL)).double()
    assert all(change(model, size, offset) < 1e-9 for offset in ((0.5, 0.25), (1.0, -3.0), (0.0, 0.1)))


def on_the_grid(mlp, x):
    """ConvNeXt's perceptron."""
    return mlp.fc2(nn.functional.gelu(mlp.fc1(x.movedim(1, -1)))).movedim(-1, 1)


@pytest.mark.parametrize("part", ["activation", "norm", "downsampling", "stem"])
def test_no_part_can_be_missing(part, monkeypatch):
    """With any part as in ConvNeXt, logits change."""
    torch.manual_seed(0)
    model = drawn(AFC(**SMALL)).double()
    if part == "activation":
        monkeypatch.setattr(afc._Mlp, "forward", on_the_grid)
    elif part == "norm":
        monkeypatch.setattr(AliasFreeNorm, "forward", lambda self, x: x / x.square().mean(1, keepdim=True).sqrt())
    elif part == "downsampling":
        model.stages[1].downsample = nn.Conv2d(6, 8, 2, 2).double()
    else:
        monkeypatch.setattr(afc, "low_pass", lambda x, share: x.sign())
    assert change(model, (32, 32), (0.5, 0.25)) > 1e-4


def test_weights_of_timm_fit():
    theirs = timm.create_model("convnext_atto", dims=(6, 8, 10, 12), depths=(1, 1, 2, 1), num_classes=5, conv_mlp=False)
    found = from_timm(theirs.state_dict())
    ours = AFC((6, 8, 10, 12), (1, 1, 2, 1), num_classes=5).state_dict()
    assert {name for name in ours if name not in found} == {
        name for name in ours if ".act." in name or name == "stem.gamma"
    }
    assert all(ours[name].shape == value.shape for name, value in found.items() if name != "stem.conv.weight")


def test_names_of_the_authors():
    ours = AFC(**SMALL).state_dict()
    stem = ["downsample_layers.0.0.1.weight", "downsample_layers.0.1.gamma", "downsample_layers.0.3.bias"]
    act = [f"downsample_layers.0.1.residual.0.{name}" for name in ("in_scale", "out_scale")]
    down = ["downsample_layers.2.0.weight", "downsample_layers.2.1.1.bias"]
    block = [f"stages.1.1.{name}" for name in ("dwconv.1.weight", "norm.bias", "mlp.pwconv2.bias", "gamma")]
    rest = ["norm.weight", "head.bias", "downsample_layers.0.2.filt.rect"]
    theirs = dict.fromkeys([*stem, *act, *down, *block, *rest], torch.zeros(1))
    found = from_authors({**theirs, "stages.0.0.mlp.act.coef": torch.zeros(24, 3, 1, 1)})
    assert set(found) <= set(ours)
    assert len(found) == len(theirs)
    assert found["stages.0.blocks.0.mlp.act.coef"].shape == (24, 3)


def test_sizes():
    assert sum(value.numel() for value in small().parameters()) < 1.1 * sum(v.numel() for v in rival().parameters())
    with pytest.raises(ValueError, match="dims and depths must have the same length, got 2 and 1"):
        afc_tiny(dims=(4, 8), depths=(1,))
