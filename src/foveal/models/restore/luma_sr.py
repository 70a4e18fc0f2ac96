"""LumaSR: a plain network for fast super-resolution on CPUs; it interpolates colour and predicts luminance detail only.

*Source*: foveal's own. It combines the collapsible convolutions of SESR (arXiv:2103.09404), the identity initialisation
of QuickSRNet (arXiv:2303.04336) and the sub-pixel layer of ESPCN (arXiv:1609.05158) with three ideas of its own:

    out = shuffle( base(x) + 1 ⊗ detail(x) )

1. *Luminance detail.* The eye resolves luminance finely and colour coarsely, so the last convolution has s² channels,
   not 3·s², and the same detail is added to red, green and blue. Colour comes from `base`, a learned linear 5×5
   upsampler that is initialised as bicubic.
2. *Grey stays grey, flat stays flat.* The upsampler is the same for each colour and mixes none. Each filter of the
   first convolution sums to zero, each phase of `base` to one, and the last bias cancels what the biases alone produce:
   a picture of one colour is reproduced exactly.
3. *Only 3×3 convolutions and one leaky slope per layer at run time*, which every engine fuses. Without padding
   (`plain`), the network itself crops the borders of a tile, so tiles join without a seam.

With `back_projection`, the result's luminance is reduced again and its difference from that of the small picture is
added, enlarged (`foveal.nn.back_projection`): three small convolutions after the others, with nothing to train.

With `equivariant` the kernels are tied so that a rotated or mirrored picture gives the rotated or mirrored result
(`foveal.nn.equivariant`). This costs nothing at run time, and each training step counts for all eight moves; see
docs/train.md for the measured gain.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.measure.quality import BT601
from foveal.nn.back_projection import REACH, BackProjection, back_projection, bicubic_kernel
from foveal.nn.collapsible import CollapsibleConv2d
from foveal.nn.equivariant import MOVES, Alike, fields, phases, still
from foveal.ops.conv3x3 import conv3x3
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["LumaSR", "luma_sr_balanced", "luma_sr_fast"]

LUMINANCE = torch.tensor(BT601) / sum(BT601)  # normalised: the luminance of white is 1


def _conv(weight: Tensor, bias: Tensor | None = None) -> nn.Conv2d:
    """An unpadded convolution with these weights."""
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], bias=bias is not None)
    conv.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        conv.bias = nn.Parameter(bias.detach().clone())
    return conv


def _of_each_colour(phases: Tensor) -> Tensor:
    """(s², k, k) to (3·s², 3, k, k): the same kernels for each colour, without mixing colours."""
    return torch.einsum("oi,pyx->opiyx", torch.eye(3).to(phases), phases).flatten(0, 1)


class _Plain(nn.Module):
    """LumaSR collapsed to plain convolutions without padding: (B, 3, H + 2r, W + 2r) to (B, 3, s·H, s·W)."""

    def __init__(self, layers: list[nn.Module], base: Tensor, scale: int, *, back_projection: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.base = _conv(_of_each_colour(base))
        self.back = BackProjection(base, LUMINANCE) if back_projection else None
        self.spread = _conv(torch.eye(scale**2).repeat(3, 1)[..., None, None].to(base))
        self.margin = len(layers) // 2 + 1 + (2 * REACH if back_projection else 0)  # every other layer is an activation
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        m = self.margin - self.base.kernel_size[0] // 2
        detail = self.layers(x)
        if self.back is not None:
            detail = self.back(detail, _cut(x, m - 2 * REACH))
        return F.pixel_shuffle(self.spread(detail) + self.base(_cut(x, m)), self.scale)


def _cut(x: Tensor, border: int) -> Tensor:
    return x[..., border:-border, border:-border] if border else x


def _ties(channels: int, scale: int, base_kernel: int) -> dict[str, Alike]:
    """The projections of each kernel and bias of an equivariant network."""
    hidden, out = fields(channels), phases(scale)
    return {
        "head": Alike(hidden, still(3), 3),
        "body": Alike(hidden, hidden, 3),
        "bias": Alike(hidden, still(1), 1),
        "tail": Alike(out, hidden, 3),
        "base": Alike(out, still(1), base_kernel),
    }


class LumaSR(nn.Module):
    """Super-resolution network, (B, 3, H, W) to (B, 3, s·H, s·W); values in [0, 1], RGB.

    Args:
        scale: s, 2 to 4.
        channels: C, width of every hidden layer; a multiple of 16 fills the vector registers.
        depth: number of 3×3 convolutions between the first and the last.
        expand: training-time width of a collapsible convolution; 0 trains its kernel itself.
        base_kernel: side of the linear colour upsampler, odd.
        equivariant: whether kernels are equivariant to all eight rotations and reflections; C must be a multiple of 8.
        back_projection: whether to correct the result's luminance by one step of back-projection.

    Raises:
        ValueError: if the scale is not 2, 3 or 4, or `equivariant` is set and C is not a multiple of 8.
    """

    # Parameters that are no hidden kernels: trained by Adam even where kernels are not.
    linear: tuple[str, ...] = ("base",)
    # Results may go beyond the local range of their source by half of it: on photographs, that costs nothing.
    overshoot: float | None = 0.5

    def __init__(
        self,
        scale: int = 4,
        *,
        channels: int = 32,
        depth: int = 8,
        expand: int = 128,
        base_kernel: int = 5,
        equivariant: bool = False,
        back_projection: bool = False,
    ) -> None:
        super().__init__()
        if scale not in (2, 3, 4):
            raise ValueError(f"scale must be 2, 3 or 4, got {scale}")
        self.scale = scale
        self.equivariant = equivariant
        self.back_projection = back_projection
        self.head = nn.Conv2d(3, channels, 3, padding=1)
        # The responses of the zero-sum filters are small and centred on 0: torch's random biases, several times as
        # large, would keep half of the channels on one side of the activation.
        nn.init.zeros_(cast("Tensor", self.head.bias))
        self.body = nn.ModuleList(
            CollapsibleConv2d(channels, channels, 3, expand=expand, residual=True) for _ in range(depth)
        )
        self.slope = nn.Parameter(torch.full((depth + 1,), 0.1))
        self.tail = nn.Conv2d(channels, scale * scale, 3, padding=1, bias=False)
        nn.init.normal_(self.tail.weight, std=1e-3)
        device = self.slope.device
        with torch.device("cpu"):  # real values are needed even if the network is built on the "meta" device
            base = bicubic_kernel(scale, base_kernel)
            ties = _ties(channels, scale, base_kernel) if equivariant else {}
        self.base = nn.Parameter(base.to(device))  # (s², k, k)
        self.ties = nn.ModuleDict(ties).to(device)
        if equivariant:
            with torch.no_grad():  # a mean of eight random weights has an eighth of their variance
                drawn = [self.head.weight, self.tail.weight, *(conv.drawn for conv in self._body())]
                torch._foreach_mul_(drawn, len(MOVES) ** 0.5)

    def _tied(self, part: str, weight: Tensor) -> Tensor:
        """A kernel or bias as the network uses it: projected if the network is equivariant."""
        if part not in self.ties:
            return weight
        tie = cast("Alike", self.ties[part])
        return tie(weight)

    def _body(self) -> list[CollapsibleConv2d]:
        return cast("list[CollapsibleConv2d]", list(self.body))

    @property
    def margin(self) -> int:
        """Radius of the receptive field in input pixels, r."""
        return len(self.body) + 2 + (2 * REACH if self.back_projection else 0)

    @torch.no_grad()
    def deepened(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert the weights of a shallower network to weights with which this one computes the same.

        Its layers keep their order, evenly spaced; the layers between them start as the identity (T. Chen et al.,
        "Net2Net", ICLR 2016, arXiv:1511.05641).

        Args:
            weights: weights by name, as from `state_dict`; those of as many layers or more are returned unchanged.

        Returns:
            Weights by name.
        """
        slope, depth = weights.get("slope"), len(self.body)
        if slope is None or not 1 < len(slope) <= depth:
            return dict(weights)
        fewer = len(slope) - 1
        mine = {f"body.{round((i + 1) * depth / fewer) - 1}.": f"body.{i}." for i in range(fewer)}
        found = {name: weight for name, weight in weights.items() if not name.startswith("body.")}
        found["slope"] = torch.ones(depth + 1)
        found["slope"][0] = slope[0]
        own = self.state_dict()
        for name, weight in own.items():
            if name.startswith("body."):
                layer, _, part = name.rpartition(".")
                theirs = mine.get(f"{layer}.")
                last = "narrow" if f"{layer}.narrow" in own else "widen"  # 0 there makes the whole kernel 0
                fresh = torch.zeros_like(weight) if part in {last, "bias"} else weight
                found[name] = fresh if theirs is None else weights[theirs + part]
        for i, (layer, _) in enumerate(mine.items()):
            found["slope"][int(layer.split(".")[1]) + 1] = slope[i + 1]
        return found

    def _phases(self) -> Tensor:
        """The upsampler of every colour, (s², k, k), normalised to sums of 1."""
        base = self._tied("base", self.base)
        return base + (1 - base.sum((1, 2), keepdim=True)) / base[0].numel()

    def _kernels(self) -> tuple[list[Tensor], list[Tensor]]:
        """Kernels and biases of the hidden layers; the first kernel is shifted to sums of 0."""
        head = self._tied("head", self.head.weight)
        kernels = [self._tied("body", conv.weight()) for conv in self._body()]
        biases = [self._tied("bias", cast("Tensor", conv.bias)) for conv in (self.head, *self._body())]
        return [head - head.mean((2, 3), keepdim=True), *kernels], biases

    def _last(self) -> Tensor:
        """Kernel of the last layer, (s², C, 3, 3)."""
        return self._tied("tail", self.tail.weight)

    @torch.no_grad()
    def change_last(self, tail: Tensor, base: Tensor) -> None:
        """Add to the last kernel (s², C, 3, 3) and the upsampler (s², k, k), projected onto their constraints.

        Args:
            tail: addition to the kernel.
            base: addition to the upsampler; each phase sums to 0.
        """
        self.tail.weight.copy_(self._last() + self._tied("tail", tail))
        self.base.copy_(self._phases() + self._tied("base", base))

    def _detail(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, s², H, W)."""
        slopes = self.slope.unbind()
        features, flat = x, torch.zeros_like(x[:1, :, :1, :1]).flatten(1)
        for weight, bias, before, slope in zip(*self._kernels(), (None, *slopes[:-1]), slopes, strict=True):
            features = conv3x3(features, weight, bias, slope=before)
            # The response to a flat picture, from the biases alone and without border effects.
            flat = F.prelu(F.linear(flat, weight.sum((2, 3)), bias), slope.reshape(1))
        tail = self._last()
        silence = F.linear(flat, tail.sum((2, 3))).flatten()
        detail = conv3x3(features, tail, -silence, slope=slopes[-1])
        if not self.back_projection:
            return detail
        luminance = torch.einsum("bchw,c->bhw", x, LUMINANCE.to(x))[:, None]
        return detail + back_projection(self._upsampled(luminance) + detail, luminance)

    def _upsampled(self, x: Tensor) -> Tensor:
        """The linear part of one colour, (B, 1, H, W) to (B, s², H, W)."""
        phases = self._phases()[:, None]
        return F.conv2d(x, phases, padding=phases.shape[-1] // 2)

    def forward(self, x: Tensor) -> Tensor:
        out = F.conv2d(x, _of_each_colour(self._phases()), padding=self.base.shape[-1] // 2)
        return F.pixel_shuffle(out + self._detail(x).repeat(1, 3, 1, 1), self.scale)

    def luminance(self, x: Tensor, weights: Tensor) -> Tensor:
        """A weighted sum of the colours of `forward`, at a third of the cost: for losses on luminance.

        Args:
            x: picture, (B, 3, H, W).
            weights: weights of red, green and blue, (3,).

        Returns:
            (B, 1, s·H, s·W).
        """
        mixed = torch.einsum("bchw,c->bhw", x, weights)[:, None]
        return F.pixel_shuffle(self._upsampled(mixed) + self._detail(x) * weights.sum(), self.scale)

    @torch.no_grad()
    def plain(self, *, back_projection: bool = True) -> nn.Module:
        """The same network as plain convolutions without padding.

        Args:
            back_projection: whether to keep the back-projection, if there is one, and the margin it needs.

        Returns:
            A module, (B, 3, H + 2r, W + 2r) to (B, 3, s·H, s·W), where r is its `margin`: its input is the picture
            reflect-padded by r pixels, or a tile with r pixels of its surroundings.
        """
        weights, biases = self._kernels()
        layers: list[nn.Module] = []
        flat = self.base.new_zeros(1, 3)
        for weight, bias, slope in zip(weights, biases, self.slope.tolist(), strict=True):
            layers += [_conv(weight, bias), nn.LeakyReLU(slope)]
            flat = F.leaky_relu(F.linear(flat, weight.sum((2, 3)), bias), slope)
        tail = self._last()
        silence = F.linear(flat, tail.sum((2, 3))).flatten()
        layers.append(_conv(tail, -silence))
        back = self.back_projection and back_projection
        return _Plain(layers, self._phases(), self.scale, back_projection=back).eval()


luma_sr_fast = partial(LumaSR, channels=16, depth=6, expand=64)  # for `--quality fast`
luma_sr_balanced = partial(LumaSR, expand=64)  # for `--quality balanced`


METHOD = Method(
    id=None,
    name="LumaSR",
    kind="model",
    summary="Plain collapsible convolutions invent luminance detail; a linear upsampler carries colour.",
    paper=Paper("LumaSR", "foveal", 2026, "foveal.models.restore.luma_sr"),
    models={"luma_sr_fast": luma_sr_fast, "luma_sr_balanced": luma_sr_balanced},
    cases={
        "luma_sr_fast": {"scale": 2, "channels": 8, "depth": 1, "expand": 8},
        "luma_sr_balanced": {},
    },
)
