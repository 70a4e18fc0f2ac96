"""APriori-Conv: convolutions made of one-way filters before training, in a U-Net that predicts a wave's next field.

*Source*: H. Boukraichi, N. Akkari, F. Casenave, D. Ryckelynck, "A priori compression of convolutional neural networks
for wave simulators", 2023 (arXiv:2304.04964).

    W_oi ≈ Σ_r u_oir ⊗ v_or,  r = 1 … R        u along the columns of the map, v along its rows

A k×k convolution becomes k·1 filters from all inputs to R maps for each output, then 1·k filters that add an output's
R maps up: R·k·(C·C' + C') weights for k²·C·C'. R = k gives every kernel exactly (v_or are the unit vectors); the
closest one of less rank is a singular value decomposition of each output's matrix (C·k, k).

Shapes: kernels (C', C, k, k); u (C', R, C, k); v (C', R, k); fields (B, C, H, W).

*Differs from the paper*: an output's filters along the rows are the same for all its inputs; filters for each pair of
channels would keep two thirds of the weights of a 3×3 convolution. The number of channels and stages, ReLU and the
inputs (two fields and the wave's speed) are our own, and the network predicts the change of the present field. Sides
that the stages do not divide are padded with the values of the border.
*Provenance*: written from the paper's abstract and summary.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.record import Method, Paper

__all__ = ["APrioriUNet", "OneWayConv2d", "joined", "separate"]


def separate(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The closest one-way filters to a kernel.

    Args:
        weight: kernel, (C', C, k, k).
        rank: R, 1 to k.

    Returns:
        u, (C', R, C, k), and v, (C', R, k), of equal size.
    """
    out, into, height, width = weight.shape
    left, values, right = torch.linalg.svd(weight.reshape(out, into * height, width), full_matrices=False)
    root = values[:, :rank].sqrt()
    u = (left[..., :rank] * root[:, None]).transpose(1, 2).reshape(out, rank, into, height)
    return u, right[:, :rank] * root[..., None]


def joined(u: Tensor, v: Tensor) -> Tensor:
    """The kernel that one-way filters are.

    Args:
        u: filters along the columns, (C', R, C, k).
        v: filters along the rows, (C', R, k).

    Returns:
        Kernel, (C', C, k, k).
    """
    return torch.einsum("orik,orl->oikl", u, v)


class OneWayConv2d(nn.Module):
    """Convolution of one-way filters with zero padding, (B, C, H, W) to (B, C', H, W).

    Args:
        in_channels: C.
        out_channels: C'.
        kernel_size: k, odd.
        rank: R, 1 to k.

    Raises:
        ValueError: an even kernel, or a rank outside its range.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, *, rank: int = 1) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}; take {kernel_size + 1}")
        if not 1 <= rank <= kernel_size:
            raise ValueError(f"rank must be in 1…{kernel_size}, got {rank}; {kernel_size} gives every kernel")
        self.rank, half = rank, kernel_size // 2
        self.down = nn.Conv2d(in_channels, rank * out_channels, (kernel_size, 1), padding=(half, 0), bias=False)
        self.along = nn.Conv2d(
            rank * out_channels, out_channels, (1, kernel_size), padding=(0, half), groups=out_channels
        )
        # keeps the variance, so that both together start as one convolution does
        nn.init.normal_(self.along.weight, std=1 / math.sqrt(rank * kernel_size))

    def forward(self, x: Tensor) -> Tensor:
        return self.along(self.down(x))

    def kernel(self) -> Tensor:
        """The dense kernel that it equals.

        Returns:
            Kernel, (C', C, k, k).
        """
        return joined(self.down.weight.squeeze(3).unflatten(0, (-1, self.rank)), self.along.weight.squeeze(2))

    @classmethod
    def from_dense(cls, layer: nn.Conv2d, *, rank: int) -> OneWayConv2d:
        """The closest layer to a trained convolution.

        Args:
            layer: convolution of stride 1 with an odd square kernel and zero padding of half its size.
            rank: R, 1 to k.

        Returns:
            Layer of one-way filters.

        Raises:
            ValueError: another kind of convolution.
        """
        size = layer.kernel_size[0]
        plain = layer.groups == 1 and layer.stride == (1, 1) and layer.dilation == (1, 1)
        if not plain or layer.kernel_size != (size, size) or layer.padding != (size // 2, size // 2):
            raise ValueError(f"wanted a k×k convolution of stride 1, one group and padding k // 2, got {layer}")
        made = cls(layer.in_channels, layer.out_channels, size, rank=rank).to(layer.weight)
        u, v = separate(layer.weight.detach(), rank)
        with torch.no_grad():
            made.down.weight.copy_(u.flatten(0, 1).unsqueeze(3))
            made.along.weight.copy_(v.unsqueeze(2))
            assert made.along.bias is not None
            made.along.bias.copy_(torch.zeros_like(made.along.bias) if layer.bias is None else layer.bias)
        return made


class APrioriUNet(nn.Module):
    """U-Net that predicts the next field of a wave, (B, in_channels, H, W) to (B, out_channels, H, W).

    Args:
        in_channels: number of input fields: the present one, the one before, and the speed.
        out_channels: number of predicted fields; as many inputs, the first ones, are their present values.
        dim: channels of the first stage, doubled by each further one.
        stages: number of stages, at least 1; each but the first halves the sides.
        kernel_size: k, odd.
        rank: R of all convolutions, 1 to k; None for dense kernels.

    Raises:
        ValueError: no stage, or fewer inputs than predicted fields.
    """

    scale = 1

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 1,
        *,
        dim: int = 16,
        stages: int = 3,
        kernel_size: int = 3,
        rank: int | None = 1,
    ) -> None:
        super().__init__()
        if stages < 1:
            raise ValueError(f"stages must be at least 1, got {stages}")
        if out_channels > in_channels:
            raise ValueError(f"out_channels must be at most in_channels, got {out_channels} and {in_channels}")
        self.out_channels = out_channels

        def convolution(into: int, out: int) -> nn.Module:
            if rank is None:
                return nn.Conv2d(into, out, kernel_size, padding=kernel_size // 2)
            return OneWayConv2d(into, out, kernel_size, rank=rank)

        def block(into: int, out: int) -> nn.Module:
            return nn.Sequential(convolution(into, out), nn.ReLU(), convolution(out, out), nn.ReLU())

        dims = [dim * 2**stage for stage in range(stages)]
        self.down = nn.ModuleList(block(a, b) for a, b in zip([in_channels, *dims[:-1]], dims, strict=True))
        self.up = nn.ModuleList(block(a + b, a) for a, b in zip(dims[-2::-1], dims[:0:-1], strict=True))
        self.last = convolution(dim, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        step, present = 2 ** (len(self.down) - 1), x[:, : self.out_channels]
        x = F.pad(x, (0, -width % step, 0, -height % step), mode="replicate")
        skips: list[Tensor] = []
        for stage, block in enumerate(self.down):
            x = block(x if stage == 0 else F.avg_pool2d(x, 2))
            skips.append(x)
        for block, skip in zip(self.up, skips[-2::-1], strict=True):
            x = block(torch.cat((skip, F.interpolate(x, scale_factor=2.0, mode="nearest")), 1))
        return present + self.last(x)[..., :height, :width]


METHOD = Method(
    id=310,
    name="APriori-Conv",
    kind="model",
    summary="Convolutions are made of filters along one axis before training; a U-Net of them predicts waves.",
    paper=Paper(
        "A priori compression of convolutional neural networks for wave simulators",
        "H. Boukraichi et al.",
        2023,
        "arXiv:2304.04964",
    ),
    models={"apriori_unet": APrioriUNet},
    cases={"apriori_unet": {"dim": 4, "stages": 2, "rank": 2}},
)
