"""Evidence for ESPCN: its layers against the same layers after upscaling, and against SRCNN trained as long."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.evidence.tasks import photos
from foveal.evidence.timing import call
from foveal.measure.cost import count_macs
from foveal.models.restore.espcn import ESPCN, transposed_kernel
from foveal.record import equal, faster, macs, params, smaller

luma = partial(ESPCN, 3, in_channels=1)


class EnlargedFirst(nn.Module):
    """Layers after bicubic upscaling, so on s² times the pixels: (B, 1, H, W) to (B, 1, s·H, s·W)."""

    def __init__(self, layers: list[nn.Conv2d], scale: int, activation: type[nn.Module], *, smooth: bool) -> None:
        super().__init__()
        self.scale, self.smooth = scale, smooth
        between = [module for layer in layers[:-1] for module in (layer, activation())]
        self.layers = nn.Sequential(*between, layers[-1])

    def forward(self, x: Tensor) -> Tensor:
        # torch's kernel has a = -0.5 only with antialias=True, which is slower; in upscaling it has no other effect.
        x = F.interpolate(x, scale_factor=self.scale, mode="bicubic", antialias=self.smooth)
        return self.layers(x)


def _twin(scale: int = 3) -> EnlargedFirst:
    layers = [nn.Conv2d(1, 64, 5, padding=2), nn.Conv2d(64, 32, 3, padding=1), nn.Conv2d(32, 1, 3, padding=1)]
    return EnlargedFirst(layers, scale, nn.Tanh, smooth=False)


def _srcnn(scale: int, *, in_channels: int) -> EnlargedFirst:
    """SRCNN 9-1-5 (arXiv:1501.00092), the "earlier network" of the paper's tables."""
    first, last = nn.Conv2d(in_channels, 64, 9, padding=4), nn.Conv2d(32, in_channels, 5, padding=2)
    return EnlargedFirst([first, nn.Conv2d(64, 32, 1), last], scale, nn.ReLU, smooth=True)


def _transposed(model: ESPCN, x: Tensor) -> Tensor:
    """Equation 4: the last layer as a strided transposed convolution."""
    features = torch.tanh(model.second(torch.tanh(model.first(x))))
    s, last = model.scale, model.last
    assert last.bias is not None
    weight = transposed_kernel(last.weight, scale=s)
    out = F.conv_transpose2d(features, weight, stride=s, padding=s * (last.kernel_size[0] // 2))
    # Each phase has its own bias: the s×s tile of biases repeats over the picture.
    tile = F.pixel_shuffle(last.bias.view(1, -1, 1, 1), s)
    return out + tile.repeat(1, 1, x.shape[2], x.shape[3])


def _enlarged(*, transposed: bool) -> Tensor:
    torch.manual_seed(0)
    # In double precision, so that rounding is far below the bound on any processor.
    model, x = luma().double().eval(), torch.rand(1, 1, 19, 23, dtype=torch.float64)
    with torch.inference_mode():
        return _transposed(model, x) if transposed else model(x)


def _hidden_macs(model: nn.Module, side: int) -> float:
    hidden = [m for m in model.modules() if isinstance(m, nn.Conv2d)][:2]
    return float(count_macs(nn.Sequential(*hidden), (1, 1, side, side)))


CLAIMS = (
    params(
        "5×5 to 64, 3×3 to 32, 3×3 to 9 channels: 22,624 weights and 105 biases at ×3 on luminance.",
        paper="layer sizes",
        model=luma,
        expect=22_729,
        beyond="layer sizes of section 3.2",
    ),
    macs(
        "One multiply-add per weight and low-resolution pixel.",
        paper="layer sizes",
        model=luma,
        shape=(1, 1, 60, 60),
        expect=22_624 * 60 * 60,
        beyond="everything happens at the small size",
    ),
    equal(
        "The sub-pixel convolution is a strided transposed convolution with its weights rearranged.",
        ours=lambda: _enlarged(transposed=False),
        theirs=lambda: _enlarged(transposed=True),
        tolerance=1e-6,
        clause=1,
    ),
    smaller(
        "The hidden layers take r² times fewer multiply-adds than on the enlarged picture.",
        paper="r² = 9 at ×3",
        ours=lambda: _hidden_macs(luma(), 60),
        theirs=lambda: _hidden_macs(_twin(), 180),
        at_least=9.0,
        beyond="complexity is reduced by r²",
    ),
    faster(
        "An order of magnitude faster than equal layers on the enlarged picture (×3, 240×240 to 720×720).",
        paper="an order of magnitude",
        ours=call(luma, 1, 1, 240, 240),
        theirs=call(_twin, 1, 1, 240, 240),
        at_least=5.0,
        clause=3,
    ),
    photos.above_bicubic(
        ESPCN,
        "After a minute of training, ×3 is at least 0.5 dB above bicubic on pictures it has not seen.",
        scale=3,
        steps=2500,
        by=0.5,
        paper="33.13 dB on Set5, trained for days",
        luminance=True,
        clause=2,
    ),
    photos.better(
        ESPCN,
        "Better than SRCNN (9-1-5) trained for as many steps on the same patches.",
        than=_srcnn,
        scale=3,
        steps=800,
        by=0.15,
        paper="+0.15 dB",
        luminance=True,
        beyond="above SRCNN",
    ),
)
