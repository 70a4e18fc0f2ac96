"""LumaClean: LumaSR for sources with compression artefacts and noise, told how much of each there is.

*Source*: foveal's own. The network is `luma_sr`'s; that one network serves every strength because it is told the
strength is the idea of K. Zhang, W. Zuo, L. Zhang, "FFDNet: Toward a Fast and Flexible Solution for CNN-Based Image
Denoising" (arXiv:1710.04026). Differs from the paper: the level is no plane beside the picture but a shift of every
hidden channel,

    hₗ = leaky(Wₗ * hₗ₋₁ + bₗ + tellₗ(jpeg, noise))

The level is the same all over a picture, so the shifts are biases at run time: `plain(level)` is as fast as LumaSR, and
all levels share their kernels. (A constant plane would do nothing in LumaSR, whose first filters sum to zero.)

Colour is cleaned where it is cheap, at the small size, before the linear upsampler enlarges it: the last convolution
makes two more planes, which correct Cb and Cr, and a 5×5 filter smooths them, as much as the noise of colour asks for,

    out = shuffle( base(x + C · (chroma(x) + K(colour) * Cᵀ x)) + 1 ⊗ detail(x) )

with C the colours of Cb and Cr, which have no luminance, and Cᵀ what takes Cb and Cr from a picture. (Without the
filter, planes alone took thousands of steps to learn about noise what its five numbers know after some hundred.) A
picture of one colour comes out as that colour, at every level. Back-projection is left away: it would pull the result
towards the damaged picture.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.models.restore.luma_sr import LUMINANCE, LumaSR, _conv, _cut
from foveal.nn.equivariant import MOVES, Alike, fields, still
from foveal.ops.conv3x3 import conv3x3
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["CHROMA", "LumaClean", "luma_clean_balanced", "luma_clean_fast"]

# RGB of one unit of Cb and of Cr (BT.601), (3, 2); their luminance is 0.
CHROMA = torch.tensor([[0.0, 1.402], [-0.344136, -0.714136], [1.772, 0.0]])
TO_CHROMA = torch.tensor([[-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])  # Cb and Cr of RGB, (2, 3)
CLEAN = (0.0, 0.0, 0.0)
FIELD = len(MOVES)
# Places of a 5×5 filter that are alike for all ways to turn and mirror it, but for the middle.
RINGS = torch.tensor([[4, 3, 2, 3, 4], [3, 1, 0, 1, 3], [2, 0, -1, 0, 2], [3, 1, 0, 1, 3], [4, 3, 2, 3, 4]])


class LumaClean(LumaSR):
    """Super-resolution network that is told how damaged its input is, (B, 3, H, W) to (B, 3, s·H, s·W); RGB in [0, 1].

    A level is three numbers: the step of the JPEG's luminance table as a multiple of that of quality 50 (0 for none,
    0.5 for quality 75); the standard deviation of the noise in units of 10 levels of 255; and the same of the noise of
    colour alone (0 where the noise is grey).

    Args:
        scale: s, 2 to 4.
        channels: C, width of every hidden layer; a multiple of 16 fills the vector registers.
        depth: 3×3 convolutions between the first and the last.
        expand: training-time width of a collapsible convolution; 0 trains its kernel itself.
        base_kernel: side of the linear colour upsampler, odd.
        equivariant: whether kernels are alike for all eight ways to turn and mirror a picture; C is a multiple of 8.
        tell: hidden width of the small network that turns a level into shifts.

    Raises:
        ValueError: a scale outside 2 to 4, or channels that an equivariant network can't have.
    """

    levels = True  # `plain` takes one
    linear = ("base", "tell.0.weight", "tell.2.weight", "calm.0.weight", "calm.2.weight")

    def __init__(
        self,
        scale: int = 4,
        *,
        channels: int = 32,
        depth: int = 8,
        expand: int = 128,
        base_kernel: int = 5,
        equivariant: bool = False,
        tell: int = 32,
    ) -> None:
        super().__init__(
            scale, channels=channels, depth=depth, expand=expand, base_kernel=base_kernel, equivariant=equivariant
        )
        # Not 0: what the layers before it know of colour they learn through it.
        self.chroma = nn.Conv2d(channels, 2, 3, padding=1, bias=False)
        nn.init.normal_(self.chroma.weight, std=0.6 * (9 * channels) ** -0.5 * (FIELD**0.5 if equivariant else 1))
        shifts = (depth + 1) * (channels // FIELD if equivariant else channels)
        self.tell = nn.Sequential(nn.Linear(4, tell), nn.SiLU(), nn.Linear(tell, shifts))
        self.calm = nn.Sequential(nn.Linear(2, tell), nn.SiLU(), nn.Linear(tell, int(RINGS.max()) + 1))
        for last in (self.tell[2], self.calm[2]):  # at the start, every level is clean
            nn.init.zeros_(cast("nn.Linear", last).weight)
            nn.init.zeros_(cast("nn.Linear", last).bias)
        if equivariant:
            self.ties["chroma"] = Alike(still(2), fields(channels), 3)

    @property
    def margin(self) -> int:
        """Radius of the receptive field in input pixels, r: colour is corrected where the upsampler looks."""
        return super().margin + self.base.shape[-1] // 2

    def shifts(self, level: Tensor) -> tuple[Tensor, ...]:
        """What a level adds to the biases of the hidden layers.

        Args:
            level: (B, 3).

        Returns:
            (B, C) for every hidden layer.
        """
        told: Tensor = self.tell(torch.cat([level[:, :2], level[:, :2].clamp_min(0).sqrt()], 1))
        if self.equivariant:
            told = told.repeat_interleave(FIELD, 1)
        return told.chunk(len(self.body) + 1, 1)

    def filters(self, level: Tensor) -> Tensor:
        """What a level adds to each pixel's Cb and Cr, of its neighbours', as a filter: K of the formula.

        Args:
            level: (B, 3).

        Returns:
            (B, 5, 5), whose sums are 0.
        """
        colour = level[:, 2:]
        rings = self.calm(torch.cat([colour, colour.clamp_min(0).sqrt()], 1))
        kernel = rings[:, RINGS.clamp_min(0)] * (RINGS >= 0)
        middle = (RINGS < 0) * kernel.sum((1, 2), keepdim=True)
        made: Tensor = kernel - middle
        return made

    def _last(self) -> Tensor:
        """Kernel of the last layer, detail and chroma, (s² + 2, C, 3, 3)."""
        return torch.cat([super()._last(), self._tied("chroma", self.chroma.weight)])

    def parts(self, x: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """What the network makes itself: luminance's detail, and what is added to Cb and Cr of the picture.

        Args:
            x: (B, 3, H, W).
            level: (B, 3).

        Returns:
            (B, s², H, W) and (B, 2, H, W).
        """
        slopes = self.slope.unbind()
        features, flat = x, x.new_zeros(len(x), 3)
        layers = zip(*self._kernels(), self.shifts(level), (None, *slopes[:-1]), slopes, strict=True)
        for weight, bias, shift, before, slope in layers:
            features = conv3x3(features, weight, bias, slope=before) + shift[..., None, None]
            # What the biases alone make of a flat picture, which has no border in its inside.
            flat = F.prelu(F.linear(flat, weight.sum((2, 3)), bias) + shift, slope.reshape(1))
        last = self._last()
        silence = F.linear(flat, last.sum((2, 3)))
        made = conv3x3(features, last, slope=slopes[-1]) - silence[..., None, None]
        detail, chroma = made.split([self.scale**2, 2], 1)
        return detail, chroma + _filtered(torch.einsum("ic,bchw->bihw", TO_CHROMA.to(x), x), self.filters(level))

    def forward(self, x: Tensor, level: Tensor | None = None) -> Tensor:
        """Enlarge pictures.

        Args:
            x: (B, 3, H, W).
            level: (B, 3); None for clean pictures.

        Returns:
            (B, 3, s·H, s·W).
        """
        detail, chroma = self.parts(x, x.new_zeros(len(x), 3) if level is None else level)
        x = x + torch.einsum("ci,bihw->bchw", CHROMA.to(x), chroma)
        phases = self._phases()[:, None].repeat(3, 1, 1, 1)  # (3·s², 1, k, k), one colour after the other
        out = F.conv2d(x, phases, padding=phases.shape[-1] // 2, groups=3)
        return F.pixel_shuffle(out + detail.repeat(1, 3, 1, 1), self.scale)

    def luminance(self, x: Tensor, weights: Tensor, level: Tensor | None = None) -> Tensor:
        """A weighted sum of the colours `forward` makes, (B, 1, s·H, s·W).

        Args:
            x: (B, 3, H, W).
            weights: of red, green and blue, (3,).
            level: (B, 3); None for clean pictures.

        Returns:
            (B, 1, s·H, s·W).
        """
        return torch.einsum("bchw,c->bhw", self(x, level), weights)[:, None]

    def separate(self, x: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """Luminance of the result, and Cb and Cr where they are cleaned: for losses, at a third of the work.

        Args:
            x: (B, 3, H, W).
            level: (B, 3).

        Returns:
            (B, 1, s·H, s·W), white is 1; and (B, 2, H, W), 0 is grey.
        """
        detail, correction = self.parts(x, level)
        mixed = torch.einsum("bchw,c->bhw", x, LUMINANCE.to(x))[:, None]
        chroma = torch.einsum("ic,bchw->bihw", TO_CHROMA.to(x), x) + correction
        return F.pixel_shuffle(self._upsampled(mixed) + detail, self.scale), chroma

    @torch.no_grad()
    def plain(self, level: Sequence[float] = CLEAN, *, back_projection: bool = False) -> nn.Module:  # noqa: ARG002
        """The network of one level as plain convolutions without padding.

        Args:
            level: step of the JPEG's table, noise, and noise of colour.
            back_projection: there is none, and none is made.

        Returns:
            A module, (B, 3, H + 2r, W + 2r) to (B, 3, s·H, s·W) with r = its `margin`.
        """
        weights, biases = self._kernels()
        layers: list[nn.Module] = []
        flat = self.base.new_zeros(1, 3)
        told = self.shifts(self.base.new_tensor([level]))
        for weight, bias, shift, slope in zip(weights, biases, told, self.slope.tolist(), strict=True):
            layers += [_conv(weight, bias + shift[0]), nn.LeakyReLU(slope)]
            flat = F.leaky_relu(F.linear(flat, weight.sum((2, 3)), bias + shift[0]), slope)
        last = self._last()
        layers.append(_conv(last, -F.linear(flat, last.sum((2, 3))).flatten()))
        kernel = self.filters(self.base.new_tensor([level]))[0]
        return _Plain(layers, self._phases(), kernel, self.scale).eval()


class _Plain(nn.Module):
    """LumaClean of one level without padding: (B, 3, H + 2r, W + 2r) to (B, 3, s·H, s·W)."""

    def __init__(self, layers: list[nn.Module], base: Tensor, kernel: Tensor, scale: int) -> None:
        super().__init__()
        phases, side, _ = base.shape
        smooth = torch.einsum("ci,io,yx->coyx", CHROMA, TO_CHROMA, kernel)
        smooth[:, :, 2, 2] += torch.eye(3)
        self.smooth = _conv(smooth.to(base))
        self.layers = nn.Sequential(*layers)
        self.base = _conv(torch.einsum("oi,pyx->opiyx", torch.eye(3).to(base), base).flatten(0, 1))
        self.colour = _conv(CHROMA[..., None, None].to(base))
        self.spread = _conv(torch.eye(phases).repeat(3, 1)[..., None, None].to(base))
        self.reach = side // 2
        self.margin = len(layers) // 2 + 1 + self.reach  # every other layer is a slope
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        made, r = self.layers(x), self.reach
        phases = self.scale**2
        # The filter reads two pixels around what the upsampler does.
        x = self.smooth(_cut(x, self.margin - r - 2)) + self.colour(made[:, phases:])
        detail = made[:, :phases, r:-r, r:-r]
        return F.pixel_shuffle(self.spread(detail) + self.base(x), self.scale)


def _filtered(x: Tensor, kernels: Tensor) -> Tensor:
    """Each picture of a batch (B, C, H, W) through its own filter (B, k, k), the border repeated."""
    batch, channels, height, width = x.shape
    r = kernels.shape[-1] // 2
    x = F.pad(x, (r, r, r, r), mode="replicate").reshape(1, -1, height + 2 * r, width + 2 * r)
    weight = kernels[:, None].repeat_interleave(channels, 0)
    return F.conv2d(x, weight, groups=batch * channels).view(batch, channels, height, width)


luma_clean_fast = partial(LumaClean, channels=16, depth=6, expand=64)  # for `--quality fast`
luma_clean_balanced = partial(LumaClean, expand=0, equivariant=True)  # for `--quality balanced`


METHOD = Method(
    id=None,
    name="LumaClean",
    kind="model",
    summary="LumaSR for compressed and noisy sources, told the level through its biases; chroma cleaned when small.",
    paper=Paper("LumaClean", "foveal", 2026, "foveal.models.restore.luma_clean"),
    models={"luma_clean_fast": luma_clean_fast, "luma_clean_balanced": luma_clean_balanced},
    cases={
        "luma_clean_fast": {"scale": 2, "depth": 1, "expand": 8},
        "luma_clean_balanced": {"scale": 3, "channels": 16, "depth": 1},
    },
)
