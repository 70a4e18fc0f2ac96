"""ESPCN: convolutions on the small picture, then one rearrangement of channels into the large one.

*Source*: W. Shi et al., "Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel Convolutional
Neural Network", CVPR 2016 (arXiv:1609.05158), section 3 and equations 1 to 4; the transposed convolution it equals is
in the authors' note "Is the deconvolution layer the same as a convolutional layer?" (arXiv:1609.07009).

*Differs from the paper*: takes RGB by default (`in_channels=1` is the paper's luminance); the paper trains for days
with the squared error, our claims train for a minute with the absolute error.

*Provenance*: written from the paper; there is no authors' code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.record import Method, Paper, equal, faster, kept, macs, params, smaller

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ESPCN", "espcn", "transposed_kernel"]


def transposed_kernel(weight: Tensor, *, scale: int) -> Tensor:
    """Rearrange a sub-pixel convolution's weight into that of the transposed convolution with the same result.

    Pixel s·y + i of the large picture takes the low-resolution rows y + a - p. A transposed convolution of stride s
    and padding s·p puts row y + a - p there with its tap i + s·(k - 1 - a); columns likewise.

    Args:
        weight: of a same-padded k×k convolution followed by a pixel shuffle, (C'·s², C, k, k), k odd.
        scale: s.

    Returns:
        Weight for `conv_transpose2d` with stride s and padding s·(k // 2), (C, C', s·k, s·k).
    """
    out_channels, in_channels, k, _ = weight.shape
    phases = weight.view(out_channels // scale**2, scale, scale, in_channels, k, k).flip(4, 5)
    # (C', i, j, C, a, b) to (C, C', a, i, b, j)
    return phases.permute(3, 0, 4, 1, 5, 2).reshape(in_channels, -1, scale * k, scale * k)


class ESPCN(nn.Module):
    """Super-resolution network, (B, C, H, W) to (B, C, s·H, s·W); values in [0, 1].

    Args:
        scale: s, at least 1.
        in_channels: C, 3 for RGB or 1 for luminance; as many come out.

    Raises:
        ValueError: a scale below 1.
    """

    def __init__(self, scale: int = 3, *, in_channels: int = 3) -> None:
        super().__init__()
        if scale < 1:
            raise ValueError(f"scale must be at least 1, got {scale}")
        self.scale = scale
        self.first = nn.Conv2d(in_channels, 64, 5, padding=2)
        self.second = nn.Conv2d(64, 32, 3, padding=1)
        self.last = nn.Conv2d(32, in_channels * scale**2, 3, padding=1)

    @property
    def margin(self) -> int:
        """Radius of the receptive field in input pixels."""
        return 4

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        x = torch.tanh(self.second(x))
        # (B, C·s², H, W) to (B, C, s·H, s·W)
        return F.pixel_shuffle(self.last(x), self.scale)


def espcn(scale: int = 3, *, in_channels: int = 3) -> ESPCN:
    """ESPCN as in the paper: 5×5 to 64 channels, 3×3 to 32, 3×3 to C·s².

    Args:
        scale: s.
        in_channels: C.

    Returns:
        The network.
    """
    return ESPCN(scale, in_channels=in_channels)


class _OnLarge(nn.Module):
    """What ESPCN is compared with: the same layers behind a bicubic enlargement, so on s² times the pixels."""

    def __init__(self, layers: list[nn.Conv2d], scale: int, activation: type[nn.Module], *, smooth: bool) -> None:
        super().__init__()
        self.scale, self.smooth = scale, smooth
        between = [module for layer in layers[:-1] for module in (layer, activation())]
        self.layers = nn.Sequential(*between, layers[-1])

    def forward(self, x: Tensor) -> Tensor:
        # torch's kernel has a = -0.5 only with antialias=True, which is slower; for enlarging it does nothing else.
        x = F.interpolate(x, scale_factor=self.scale, mode="bicubic", antialias=self.smooth)
        return self.layers(x)


def _twin(scale: int) -> nn.Module:
    layers = [nn.Conv2d(1, 64, 5, padding=2), nn.Conv2d(64, 32, 3, padding=1), nn.Conv2d(32, 1, 3, padding=1)]
    return _OnLarge(layers, scale, nn.Tanh, smooth=False).eval()


def _srcnn(scale: int, *, in_channels: int) -> nn.Module:
    """SRCNN 9-1-5 (arXiv:1501.00092), the "earlier network" of the paper's tables."""
    first, last = nn.Conv2d(in_channels, 64, 9, padding=4), nn.Conv2d(32, in_channels, 5, padding=2)
    return _OnLarge([first, nn.Conv2d(64, 32, 1), last], scale, nn.ReLU, smooth=True)


def _transposed(model: ESPCN, x: Tensor) -> Tensor:
    features = torch.tanh(model.second(torch.tanh(model.first(x))))
    s, last = model.scale, model.last
    assert last.bias is not None
    weight = transposed_kernel(last.weight, scale=s)
    out = F.conv_transpose2d(features, weight, stride=s, padding=s * (last.kernel_size[0] // 2))
    # Each phase has its own bias: the s×s tile of biases repeats over the picture.
    tile = F.pixel_shuffle(last.bias.view(1, -1, 1, 1), s)
    return out + tile.repeat(1, 1, x.shape[2], x.shape[3])


def _claimed_pair(*, transposed: bool) -> Tensor:
    torch.manual_seed(0)
    # In double precision, where rounding is far below the bound on any processor.
    model, x = ESPCN(3, in_channels=1).double().eval(), torch.rand(1, 1, 19, 23, dtype=torch.float64)
    with torch.inference_mode():
        return _transposed(model, x) if transposed else model(x)


def _hidden_macs(model: nn.Module) -> float:
    from foveal.measure.cost import count_macs

    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)][:2]
    scale = 3 if isinstance(model, _OnLarge) else 1
    return float(count_macs(nn.Sequential(*convolutions), (1, 1, 60 * scale, 60 * scale)))


def _timed(model: nn.Module) -> Callable[[], Any]:
    x = torch.rand(1, 1, 240, 240)

    def call() -> Tensor:
        with torch.inference_mode():
            return model(x)

    return call


def _gain(seed: int) -> float:
    from foveal.train.brief import gain, trained

    return gain(trained(espcn, 3, steps=2500, seed=seed, luminance=True), 3, luminance=True)


def _above_srcnn(seed: int) -> float:
    from foveal.train.brief import gain, trained

    ours, theirs = (trained(build, 3, steps=800, seed=seed, luminance=True) for build in (espcn, _srcnn))
    return gain(ours, 3, luminance=True) - gain(theirs, 3, luminance=True)


_DATA = "trained on BSDS500 without BSD100; Set5, Set14 and BSD100, ×3, luminance, shave 3"
_NEEDS = ("minutes", "bsds400", "Set5", "Set14", "BSD100")

METHOD = Method(
    id=63,
    name="ESPCN",
    kind="model",
    summary="Three convolutions on the small picture, then a pixel shuffle makes it large.",
    paper=Paper(
        "Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel Convolutional Neural Network",
        "W. Shi et al.",
        2016,
        "arXiv:1609.05158",
    ),
    models={"espcn": espcn},
    cases={"espcn": {"scale": 2, "in_channels": 1}},
    claims=(
        params(
            "5×5 to 64, 3×3 to 32, 3×3 to 9 channels: 22,624 weights and 105 biases at ×3 on luminance.",
            paper="layer sizes",
            model=lambda: espcn(3, in_channels=1),
            expect=22_729,
        ),
        macs(
            "One multiply-add per weight and low-resolution pixel.",
            paper="layer sizes",
            model=lambda: espcn(3, in_channels=1),
            shape=(1, 1, 60, 60),
            expect=22_624 * 60 * 60,
        ),
        equal(
            "The sub-pixel convolution is a strided transposed convolution with its weights rearranged.",
            ours=lambda: _claimed_pair(transposed=False),
            theirs=lambda: _claimed_pair(transposed=True),
            tolerance=1e-6,
        ),
        smaller(
            "The hidden layers take r² times fewer multiply-adds than on the enlarged picture.",
            paper="r² = 9 at ×3",
            ours=lambda: _hidden_macs(espcn(3, in_channels=1)),
            theirs=lambda: _hidden_macs(_twin(3)),
            at_least=9.0,
        ),
        faster(
            "An order of magnitude faster than equal layers on the enlarged picture (×3, 240×240 to 720×720).",
            paper="an order of magnitude",
            ours=lambda: _timed(espcn(3, in_channels=1).eval()),
            theirs=lambda: _timed(_twin(3)),
            at_least=5.0,
        ),
        kept(
            "After a minute of training, ×3 is at least 0.5 dB above bicubic on pictures it has not seen.",
            paper="33.13 dB on Set5, trained for days",
            quality=_gain,
            at_least=0.5,
            data=_DATA,
            needs=_NEEDS,
        ),
        kept(
            "Better than SRCNN (9-1-5) trained for as many steps on the same patches.",
            paper="+0.15 dB",
            quality=_above_srcnn,
            at_least=0.15,
            data=_DATA,
            needs=_NEEDS,
        ),
    ),
)
