"""ST-AVSR: films enlarged by any factor, with kernels that depend on the factor alone and are computed once.

*Source*: W. Shang et al., "Arbitrary-Scale Video Super-Resolution with Structural and Textural Priors", ECCV 2024
(arXiv:2407.09919), section 3. For frames x_t, (B, 3, H, W), and a prior p_t of fixed multi-scale features of a VGG
network, brought to D channels:

    h_t = R₁([x_t, p_t, warp(h_{t-1}, flow_{t→t-1})])                      flow-guided recurrence, from the past
    a_t = Σ_j softmax_j(⟨Q h_t, K ĥ_j⟩ / √D) V ĥ_j                         flow-refined cross-attention, to the future,
          ĥ_j = warp(h_{t+j}, flow_{t→t+j} + Δ_j),  Δ_j = offset([h_t, warp(h_{t+j}, flow_{t→t+j})])
    f_t = W [R₂([x_t, p_t, a_t]), h_t]
    y_t(q) = tail( Σ_δ κ(s, δ, offset of q) ⊙ f_t(⌊q⌉ + δ) ) + bicubic(x_t)(q)      hyper-upsampling, δ of 3×3

q runs over the (round(s·H), round(s·W)) new pixels, ⌊q⌉ is the old pixel nearest to q, and κ, (D,), is a small network
with sines of encoded scale, δ and sub-pixel offset. No picture enters κ, so `kernels` gives them for a size and a
scale once, and `forward` takes them for every frame.

*Differs from the paper*: motion is found without learning (`foveal.nn.propagation`) in place of a frozen PWC-Net; each
future frame is sampled at one refined place, without groups; features are read at the nearest pixel and summed over δ,
in place of a bilinear read and a fold; beyond the last frame stands the last one, in place of a reflection; the skip
connection is bicubic. A VGG without ImageNet weights is random and frozen: then the prior has the paper's form only.

*Provenance*: written from the paper; depths, widths, the prior's pooling and the width of κ from the authors' code.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.nn.motion import warped
from foveal.nn.propagation import ResidualCell, film_flow, propagated
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["STAVSR", "HyperKernels", "VGGPrior", "phases", "upsampled"]

CONVOLUTIONS = (2, 2, 3, 3, 3)  # of the stages of VGG-16
REACH = 4  # pixels that are searched for motion, in every direction


def phases(old: int, new: int) -> tuple[Tensor, Tensor]:
    """Where new pixels lie along one side.

    Args:
        old: pixels of a side before.
        new: pixels of it after.

    Returns:
        The nearest old pixel, (new,), and the offset from its middle in old pixels, -0.5 to 0.5, (new,) in float64.
    """
    places = (torch.arange(new, dtype=torch.float64) + 0.5) * old / new
    nearest = places.floor().long().clamp(max=old - 1)
    return nearest, places - nearest - 0.5


def upsampled(x: Tensor, kernels: Tensor) -> Tensor:
    """Each channel by its own kernel at each new pixel.

    Args:
        x: features, (B, D, H, W).
        kernels: (D, 9, H', W'), taps row by row.

    Returns:
        (B, D, H', W').
    """
    sides = zip(x.shape[-2:], kernels.shape[-2:], strict=True)
    rows, columns = (phases(old, new)[0].to(x.device) for old, new in sides)
    padded, out = F.pad(x, (1, 1, 1, 1), mode="replicate"), []
    for across in range(3):
        wide = padded.index_select(3, columns + across)
        out += [wide.index_select(2, rows + down) * kernels[:, 3 * down + across] for down in range(3)]
    return sum(out[1:], out[0])
    return out


def _encoded(values: Tensor, octaves: int) -> Tensor:
    """Sines and cosines of numbers around one, (..., n) to (..., 2·n·octaves)."""
    waves = values[..., None] * math.pi * 2.0 ** torch.arange(-1, octaves - 1).to(values)
    return torch.cat([waves.sin(), waves.cos()], -1).flatten(-2)


class HyperKernels(nn.Module):
    """κ: sizes before and after to the kernels of `upsampled`, (D, 9, H', W').

    Args:
        dim: D.
        hidden: width of its layers.
        octaves: frequencies of the encoding.
    """

    def __init__(self, dim: int, *, hidden: int = 16, octaves: int = 4) -> None:
        super().__init__()
        self.octaves = octaves
        layers = [nn.Linear(12 * octaves if not i else hidden, hidden) for i in range(3)]
        self.layers, self.out = nn.ModuleList(layers), nn.Linear(hidden, dim)
        for layer in layers:  # a sine spreads again what it is given
            nn.init.uniform_(layer.weight, -math.sqrt(6 / layer.in_features), math.sqrt(6 / layer.in_features))
        for parameter in self.out.parameters():  # at the start, bilinear interpolation
            nn.init.zeros_(parameter)

    def forward(self, height: int, width: int, new_height: int, new_width: int) -> Tensor:
        like = self.out.weight
        down, across = (phases(*side)[1].to(like) for side in ((height, new_height), (width, new_width)))
        tap = torch.arange(-1, 2).to(like)
        shape = (3, 3, new_height, new_width)
        told = [
            tap[:, None, None, None], tap[:, None, None],
            down[:, None], across,
            like.new_tensor(height / new_height), like.new_tensor(width / new_width),
        ]  # fmt: skip
        y = _encoded(torch.stack([t.expand(shape) for t in told], -1), self.octaves)
        for layer in self.layers:
            y = layer(y).sin()
        linear = (
            F.relu(1 - (tap[:, None] - down).abs())[:, None, :, None]
            * F.relu(1 - (tap[:, None] - across).abs())[:, None]
        )
        # (3, 3, H', W', D) to (D, 9, H', W')
        kernels: Tensor = (linear[..., None] + self.out(y)).flatten(0, 1).permute(3, 0, 1, 2)
        return kernels


class VGGPrior(nn.Module):
    """Structure and texture of a picture: features of VGG-16's stages at the picture's size, frozen.

    Between stages the squares are averaged, which keeps the energy of a texture. (B, 3, H, W) to (B, Σ widths, H, W).

    Args:
        widths: channels of each stage, at most five.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, widths: Sequence[int] = (64, 128, 256, 512, 512)) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), persistent=False)
        self.stages, before = nn.ModuleList(), 3
        for width, count in zip(widths, CONVOLUTIONS, strict=False):
            self.stages.append(
                nn.Sequential(*(nn.Conv2d(before if not i else width, width, 3, padding=1) for i in range(count)))
            )
            before = width
        for parameter in self.parameters():
            parameter.requires_grad_(False)
            if parameter.ndim > 1:  # random features keep the scale of what they see
                nn.init.kaiming_normal_(parameter, nonlinearity="relu")

    def load_vgg16(self, state: Mapping[str, Tensor]) -> None:
        """Weights of a VGG-16 as torchvision names them.

        Args:
            state: state dict with `features.0.weight` and on; what stands behind the convolutions is not read.
        """
        names = sorted({int(name.split(".")[1]) for name in state if name.startswith("features.")})
        for place, layer in zip(
            names, (c for stage in self.stages for c in cast("nn.Sequential", stage)), strict=False
        ):
            layer.load_state_dict({what: state[f"features.{place}.{what}"] for what in ("weight", "bias")})

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        y, found = (x - self.mean) / self.std, []
        for i, stage in enumerate(self.stages):
            if i:
                y = F.avg_pool2d(y.square(), 2, ceil_mode=True).sqrt()
            for layer in cast("nn.Sequential", stage):
                y = F.relu(layer(y))
            found.append(F.interpolate(y, x.shape[-2:], mode="bilinear", align_corners=False))
        return torch.cat(found, 1)


class _FutureAttention(nn.Module):
    """h_t and states of future frames along their flows to a_t, (B, D, H, W)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Conv2d(dim, dim, 1) for _ in range(3))
        self.offset = nn.Conv2d(2 * dim, 2, 3, padding=1)
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)  # type: ignore[arg-type]

    def forward(self, state: Tensor, future: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        query, scores, values = self.query(state), [], []
        for other, flow in future:
            change = self.offset(torch.cat([state, warped(other, flow)], 1))
            seen = warped(other, flow + change)
            scores.append((query * self.key(seen)).sum(1, keepdim=True) / query.shape[1] ** 0.5)
            values.append(self.value(seen))
        weights = torch.stack(scores).softmax(0)
        return (weights * torch.stack(values)).sum(0)


class STAVSR(nn.Module):
    """Film, (B, T, 3, H, W), to (B, T, 3, round(s·H), round(s·W)); a picture, (B, 3, H, W), is a film of one frame.

    RGB in [0, 1].

    Args:
        scale: s where `forward` gives none, at least 1.
        dim: D.
        depth: residual blocks of R₁ and of R₂.
        future: future frames that each frame attends to, at least 1.
        prior_widths: channels of the prior's stages; none for the paper's baseline without a prior.

    Raises:
        ValueError: a scale below 1 or no future frame.
    """

    def __init__(
        self,
        scale: float = 4,
        *,
        dim: int = 64,
        depth: int = 15,
        future: int = 2,
        prior_widths: Sequence[int] = (64, 128, 256, 512, 512),
    ) -> None:
        super().__init__()
        if scale < 1 or future < 1:
            raise ValueError(f"scale and future must be at least 1, got {scale} and {future}")
        self.scale, self.dim, self.future = scale, dim, future
        self.prior = VGGPrior(prior_widths) if prior_widths else None
        self.bring = nn.Conv2d(sum(prior_widths), dim, 1) if prior_widths else None
        seen = 3 + (dim if prior_widths else 0) + dim
        self.past, self.both = ResidualCell(seen, dim, depth), ResidualCell(seen, dim, depth)
        self.attention = _FutureAttention(dim)
        self.join = nn.Conv2d(2 * dim, dim, 1)
        self.hyper = HyperKernels(dim)
        self.tail = nn.Sequential(nn.Conv2d(dim, dim, 1), nn.LeakyReLU(0.1), nn.Conv2d(dim, 3, 3, padding=1))
        for parameter in self.tail[-1].parameters():  # at the start, bicubic
            nn.init.zeros_(parameter)

    def kernels(self, height: int, width: int, scale: float | None = None) -> Tensor:
        """Kernels for all frames of a size, to be computed once.

        Args:
            height: H of the frames before.
            width: W of the frames before.
            scale: s; None for the network's.

        Returns:
            (D, 9, round(s·H), round(s·W)).

        Raises:
            ValueError: a scale below 1.
        """
        scale = self.scale if scale is None else scale
        if scale < 1:
            raise ValueError(f"scale must be at least 1, got {scale}; shrink by another tool")
        found: Tensor = self.hyper(height, width, round(scale * height), round(scale * width))
        return found

    def features(self, film: Tensor) -> Tensor:
        """What all frames say of each frame.

        Args:
            film: (B, T, 3, H, W).

        Returns:
            f, (B, T, D, H, W).
        """
        seen, count = film, film.shape[1]
        if self.prior is not None and self.bring is not None:
            prior = self.bring(self.prior(film.flatten(0, 1))).unflatten(0, film.shape[:2])
            seen = torch.cat([film, prior], 2)
        states = propagated(seen, film_flow(film, ahead=-1, reach=REACH), self.past, self.dim)
        future = []
        for j in range(1, self.future + 1):
            later = states[:, (torch.arange(count) + j).clamp(max=count - 1)]
            future.append((later.flatten(0, 1), film_flow(film, ahead=j, reach=REACH).flatten(0, 1)))
        state = states.flatten(0, 1)
        told = self.both(torch.cat([seen.flatten(0, 1), self.attention(state, future)], 1))
        joined: Tensor = self.join(torch.cat([told, state], 1))
        return joined.unflatten(0, film.shape[:2])

    def enlarged(self, frames: Tensor, features: Tensor, kernels: Tensor) -> Tensor:
        """Large frames, each from its features.

        Args:
            frames: (B, 3, H, W).
            features: f, (B, D, H, W).
            kernels: from `kernels`, (D, 9, H', W').

        Returns:
            (B, 3, H', W').
        """
        base = F.interpolate(frames, kernels.shape[-2:], mode="bicubic", align_corners=False)
        return base + self.tail(upsampled(features, kernels))

    def forward(self, film: Tensor, scale: float | None = None, *, kernels: Tensor | None = None) -> Tensor:
        if film.ndim == 4:
            return self.forward(film[:, None], scale, kernels=kernels)[:, 0]
        if kernels is None:
            height, width = film.shape[-2:]
            kernels = self.kernels(height, width, scale)
        large = self.enlarged(film.flatten(0, 1), self.features(film).flatten(0, 1), kernels)
        return large.unflatten(0, film.shape[:2])


METHOD = Method(
    id=191,
    name="ST-AVSR",
    kind="model",
    summary="Films enlarged by any factor by kernels that are computed once for each factor.",
    paper=Paper(
        "Arbitrary-Scale Video Super-Resolution with Structural and Textural Priors",
        "W. Shang et al.",
        2024,
        "arXiv:2407.09919",
    ),
    models={"st_avsr": STAVSR},
    cases={"st_avsr": {"scale": 2.5, "dim": 4, "depth": 1, "prior_widths": (2, 3)}},
)
