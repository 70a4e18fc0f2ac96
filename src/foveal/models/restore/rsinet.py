"""RSINet: holes in pictures filled by three networks, one for edges, one for colours and one for textures.

*Source*: A. Kumar et al., "RSINet: Inpainting Remotely Sensed Images Using Triple GAN Framework", IGARSS 2022
(arXiv:2202.05988), the three generators and their losses. For a picture x, (B, 3, H, W), and a mask m, (B, 1, H, W),
1 where the picture is lost, x̃ = x ⊙ (1 - m):

    e = edges(x̃) ⊙ (1 - m⁺) + E([grey(x̃), edges(x̃) ⊙ (1 - m⁺), m]) ⊙ m⁺,  m⁺ = m and what its rim reaches
    c = filled(x̃) + C([x̃, m])                                                colours, without fine structure
    y = x̃ + m ⊙ (c + T([x̃, m, e, c]))                                        textures
    loss of a stage = |made - wanted|₁ / mean m + λ softplus(-D(made))        D, a critic of patches for each stage

The wanted maps are edges(x), a Gaussian mean of x, and x. Each stage is a residual encoder and decoder whose inner map
is weighted by attention among channels, σ(f(mean) + f(max)), and among places, the largest of σ(k * [mean, max]) over
three sizes of k, with a skip from the first layer. Gradients of a stage's loss reach that stage only.

*Differs from the paper*: edges are the soft magnitude of a gradient in place of Canny's; the colour network adds to
`filled`, a membrane over the hole, and the texture network to the colours; there is no instance normalisation, which
takes the mean colour away; all stages are trained at once; losses by VGG features are left out, for want of weights.

*Provenance*: written from the paper; layers, sizes of k, λ and the loss's division by the share of the hole from the
authors' code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import spectral_norm

from foveal.nn.propagation import he_
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "Generator",
    "PatchCritic",
    "RSINet",
    "SpectralSpatialAttention",
    "edges",
    "filled",
    "low_pass",
    "stage_loss",
]

RIM = 3  # pixels around a hole whose edges cannot be known
CONTRAST = 0.1  # step of grey, in [0, 1], at which an edge counts as 0.4
LUMA = (0.299, 0.587, 0.114)


def low_pass(x: Tensor, sigma: float) -> Tensor:
    """Gaussian mean, borders repeated.

    Args:
        x: (B, C, H, W).
        sigma: standard deviation in pixels.

    Returns:
        The same shape.
    """
    radius = max(1, round(3 * sigma))
    row = torch.exp(-torch.arange(-radius, radius + 1).to(x).square() / (2 * sigma**2))
    row, channels = (row / row.sum()).view(1, 1, 1, -1), x.shape[1]
    wide = F.conv2d(F.pad(x, (radius, radius, 0, 0), mode="replicate"), row.repeat(channels, 1, 1, 1), groups=channels)
    tall = F.pad(wide, (0, 0, radius, radius), mode="replicate")
    return F.conv2d(tall, row.mT.repeat(channels, 1, 1, 1), groups=channels)


def edges(grey: Tensor) -> Tensor:
    """Soft edges.

    Args:
        grey: (B, 1, H, W) in [0, 1].

    Returns:
        0 where nothing changes to 1 at strong edges, the same shape.
    """
    around = F.pad(low_pass(grey, 0.8), (1, 1, 1, 1), mode="replicate")
    across = around[..., 1:-1, 2:] - around[..., 1:-1, :-2]
    down = around[..., 2:, 1:-1] - around[..., :-2, 1:-1]
    return 1 - torch.exp(-(across.square() + down.square()) / (2 * CONTRAST**2))


def filled(seen: Tensor, mask: Tensor, *, sweeps: int = 8) -> Tensor:
    """Holes filled by a membrane that is fixed at what is known, coarse to fine.

    Means of what is known in growing squares are enlarged into the holes; at each size lost pixels become the mean of
    their neighbours, several times.

    Args:
        seen: picture, 0 where it is lost, (B, C, H, W).
        mask: 1 where it is lost, (B, 1, H, W).
        sweeps: means at each size.

    Returns:
        (B, C, H, W); 0 for a picture of which all is lost.
    """
    known, levels = 1 - mask, []
    while True:
        levels.append((seen, known))
        if max(seen.shape[-2:]) == 1:
            break
        seen, known = (F.avg_pool2d(x, 2, ceil_mode=True) for x in (seen, known))
    out = seen / known.clamp_min(1e-6)
    for seen, known in reversed(levels[:-1]):
        out = seen + (1 - known) * F.interpolate(out, seen.shape[-2:], mode="bilinear", align_corners=False)
        for _ in range(sweeps):
            around = F.pad(out, (1, 1, 1, 1), mode="replicate")
            sides = around[..., 1:-1, :-2] + around[..., 1:-1, 2:] + around[..., :-2, 1:-1] + around[..., 2:, 1:-1]
            out = seen + (1 - known) * sides / 4
    return out


def _grey(x: Tensor) -> Tensor:
    return (x * x.new_tensor(LUMA).view(3, 1, 1)).sum(1, keepdim=True)


class SpectralSpatialAttention(nn.Module):
    """A map weighted by channel and then by place, (B, C, H, W) to the same.

    Args:
        dim: C.
        kernel_sizes: of the convolutions that look at places, odd.
    """

    def __init__(self, dim: int, kernel_sizes: Sequence[int] = (3, 7, 11)) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.places = nn.ModuleList(nn.Conv2d(2, 1, k, padding=k // 2) for k in kernel_sizes)

    def forward(self, x: Tensor) -> Tensor:
        weights = (self.mlp(x.mean((2, 3))) + self.mlp(x.amax((2, 3)))).sigmoid()
        x = x * weights[..., None, None]
        seen = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1)
        # the largest of sigmoids is the sigmoid of the largest
        return x * torch.stack([place(seen) for place in self.places]).amax(0).sigmoid()


class _Residual(nn.Sequential):
    def __init__(self, dim: int) -> None:
        super().__init__(
            nn.Conv2d(dim, dim, 3, padding=2, dilation=2, padding_mode="replicate"), nn.ReLU(),
            nn.Conv2d(dim, dim, 3, padding=1, padding_mode="replicate"),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class Generator(nn.Module):
    """One stage, (B, in_channels, H, W) to (B, out_channels, H, W), which starts as 0.

    Args:
        in_channels: channels that it sees.
        out_channels: channels that it makes.
        dim: channels of its first layer; the inner ones have four times as many.
        depth: residual blocks, at a quarter of the side.
        kernel_size: of the first and the last convolution, odd.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, dim: int = 64, depth: int = 8, kernel_size: int = 7
    ) -> None:
        super().__init__()
        pad = kernel_size // 2
        self.head = nn.Sequential(
            nn.Conv2d(in_channels, dim, kernel_size, padding=pad, padding_mode="replicate"), nn.ReLU()
        )
        self.down = nn.Sequential(
            nn.Conv2d(dim, 2 * dim, 4, 2, 1), nn.ReLU(), nn.Conv2d(2 * dim, 4 * dim, 4, 2, 1), nn.ReLU()
        )
        self.skip = nn.Conv2d(dim, 4 * dim, 1, stride=4)
        self.blocks = nn.Sequential(*(_Residual(4 * dim) for _ in range(depth)))
        self.attention = SpectralSpatialAttention(4 * dim)
        self.up = nn.Sequential(
            nn.ConvTranspose2d(4 * dim, 2 * dim, 4, 2, 1), nn.ReLU(),
            nn.ConvTranspose2d(2 * dim, dim, 4, 2, 1), nn.ReLU(),
        )  # fmt: skip
        self.out = nn.Conv2d(dim, out_channels, kernel_size, padding=pad, padding_mode="replicate")
        he_(self)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        first = self.head(F.pad(x, (0, -width % 4, 0, -height % 4), mode="replicate"))
        y = self.blocks(self.down(first) + self.skip(first))
        made: Tensor = self.out(self.up(y + self.attention(y)))
        return made[..., :height, :width]


class PatchCritic(nn.Module):
    """D: (B, C, H, W) to logits of patches, (B, 1, H / 4, W / 4); high for what is real.

    Args:
        in_channels: C.
        dim: channels of its first layer.
    """

    def __init__(self, in_channels: int, *, dim: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            spectral_norm(nn.Conv2d(in_channels, dim, 4, 2, 1)), nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(dim, 2 * dim, 4, 2, 1)), nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(2 * dim, 1, 3, padding=1)),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits


def stage_loss(made: Tensor, wanted: Tensor, mask: Tensor, critic: nn.Module, *, weight: float = 0.1) -> Tensor:
    """Loss of a stage and of its critic; gradients of each one's part reach that one only.

    Args:
        made: (B, C, H, W).
        wanted: the same shape.
        mask: 1 where the picture is lost, (B, 1, H, W).
        critic: D.
        weight: λ.

    Returns:
        Scalar.
    """
    fixed = {name: value.detach() for name, value in critic.named_parameters()}
    fooled = F.softplus(-functional_call(critic, fixed, (made,))).mean()
    told = F.softplus(critic(made.detach())).mean() + F.softplus(-critic(wanted)).mean()
    return (made - wanted).abs().mean() / mask.mean().clamp_min(1e-3) + weight * fooled + told


class RSINet(nn.Module):
    """Picture and mask, (B, 4, H, W), to the picture without holes, (B, 3, H, W).

    RGB in [0, 1], mask 1 where the picture is lost.

    Args:
        scale: 1; it does not enlarge.
        dim: channels of each stage's first layer.
        depth: residual blocks of each stage.
        kernel_size: of the first and the last convolution of each stage, odd.
        blur: standard deviation of the mean that the colours are learnt from, in pixels.

    Raises:
        ValueError: another scale.
    """

    in_channels, out_channels = 4, 3

    def __init__(
        self, scale: int = 1, *, dim: int = 64, depth: int = 8, kernel_size: int = 7, blur: float = 2.0
    ) -> None:
        super().__init__()
        if scale != 1:
            raise ValueError(f"RSINet fills holes at the same size, scale 1, got {scale}")
        self.scale, self.blur = scale, blur
        self.edge, self.colour, self.texture = (
            Generator(seen, made, dim=dim, depth=depth, kernel_size=kernel_size)
            for seen, made in ((3, 1), (4, 3), (8, 3))
        )

    def stages(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What each stage makes of a picture.

        Args:
            x: picture and mask, (B, 4, H, W).

        Returns:
            Edges, (B, 1, H, W), colours and picture, (B, 3, H, W) each.
        """
        mask = x[:, 3:]
        seen = x[:, :3] * (1 - mask)
        grey, wide = _grey(seen), F.max_pool2d(mask, 2 * RIM + 1, 1, RIM)
        known = edges(grey) * (1 - wide)
        edge = known + wide * self.edge(torch.cat([grey, known, mask], 1)).sigmoid()
        colour = filled(seen, mask) + self.colour(torch.cat([seen, mask], 1))
        told = torch.cat([seen, mask, edge.detach(), colour.detach()], 1)
        return edge, colour, seen + mask * (colour.detach() + self.texture(told))

    def wanted(self, picture: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the stages learn to make.

        Args:
            picture: without holes, (B, 3, H, W).

        Returns:
            Edges, (B, 1, H, W), colours and picture, (B, 3, H, W) each.
        """
        return edges(_grey(picture)), low_pass(picture, self.blur), picture

    def forward(self, x: Tensor) -> Tensor:
        return self.stages(x)[2]


METHOD = Method(
    id=201,
    name="RSINet",
    kind="model",
    summary="Holes in pictures filled by three networks, for edges, colours and textures, each with a critic.",
    paper=Paper(
        "RSINet: Inpainting Remotely Sensed Images Using Triple GAN Framework",
        "A. Kumar et al.",
        2022,
        "arXiv:2202.05988",
    ),
    models={"rsinet": RSINet},
    cases={"rsinet": {"dim": 2, "depth": 1}},
    except_for={"gradients": "each stage learns from its own loss, `stage_loss`, not from the last one's output"},
)
