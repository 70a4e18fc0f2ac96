"""ULSAM: groups of channels are each weighted by an attention map of their own, at two weights per channel.

*Source*: R. Saini et al., "ULSAM: Ultra-Lightweight Subspace Attention Module for Compact Convolutional Neural
Networks", WACV 2020 (arXiv:2006.15102), section 3. The C channels are split into g subspaces F_n of G = C / g; each is
weighted by one map over the H·W places:

    A_n = softmax over places (PW (maxpool 3×3 (DW F_n)))        DW: one weight per channel, PW: G channels to one
    F̂_n = A_n ⊙ F_n + F_n

which takes C + C weights and 2·C·H·W multiply-adds for the maps. A batch norm and a ReLU follow DW and PW. Instead of
two of MobileNetV2's residual blocks it saves 13 % of the multiply-adds.

*Differs from the paper*: nothing in the formula. The code of the authors gives both convolutions a bias, which the norm
after them takes away again, and runs the norms with a momentum of 0.9; here there is no bias and torch's momentum.

*Provenance*: written from the formula; with zero biases its outputs and gradients are those of the authors' module.
`stand_in`, for `foveal.swap`, is foveal's own.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.cases import Operator
from foveal.record import Method, Paper

__all__ = ["ULSAM", "stand_in", "subspace_attention", "subspace_attention_reference", "subspace_maps", "ulsam_g4"]


def subspace_maps(logits: Tensor) -> Tensor:
    """Attention over the places of each map.

    Args:
        logits: one map per subspace, (B, g, H, W).

    Returns:
        Maps that sum to 1, (B, g, H, W).
    """
    return logits.flatten(2).softmax(2).view_as(logits)


def subspace_attention(x: Tensor, maps: Tensor) -> Tensor:
    """Weight each subspace by its map and add it to the result.

    Args:
        x: (B, C, H, W).
        maps: (B, g, H, W), where g divides C; subspace n has the channels from n·C/g.

    Returns:
        (B, C, H, W).
    """
    # (B, g, G, H, W)
    spaces = x.unflatten(1, (maps.shape[1], -1))
    return (spaces * maps[:, :, None] + spaces).flatten(1, 2)


def subspace_attention_reference(x: Tensor, maps: Tensor) -> Tensor:
    """The same, one subspace after the other.

    Args:
        x: (B, C, H, W).
        maps: (B, g, H, W).

    Returns:
        (B, C, H, W).
    """
    spaces = x.chunk(maps.shape[1], 1)
    return torch.cat([maps[:, n : n + 1] * space + space for n, space in enumerate(spaces)], 1)


class ULSAM(nn.Module):
    """(B, C, H, W) to the same shape.

    Args:
        dim: C.
        num_subspaces: g, a divisor of C.

    Raises:
        ValueError: the channels cannot be split into as many subspaces.
    """

    def __init__(self, dim: int, *, num_subspaces: int = 4) -> None:
        super().__init__()
        if num_subspaces < 1 or dim % num_subspaces:
            raise ValueError(f"num_subspaces must divide the {dim} channels, got {num_subspaces}")
        self.depthwise = nn.Conv2d(dim, dim, 1, groups=dim, bias=False)
        self.norm1 = nn.BatchNorm2d(dim)
        self.pointwise = nn.Conv2d(dim, num_subspaces, 1, groups=num_subspaces, bias=False)
        self.norm2 = nn.BatchNorm2d(num_subspaces)

    def maps(self, x: Tensor) -> Tensor:
        """Attention maps.

        Args:
            x: (B, C, H, W).

        Returns:
            One map per subspace, (B, g, H, W), that sums to 1.
        """
        gathered = F.max_pool2d(F.relu(self.norm1(self.depthwise(x))), 3, stride=1, padding=1)
        return subspace_maps(F.relu(self.norm2(self.pointwise(gathered))))

    def forward(self, x: Tensor) -> Tensor:
        return subspace_attention(x, self.maps(x))


ulsam_g4 = partial(ULSAM, num_subspaces=4)  # of the MobileNetV2 that gains on ImageNet


def stand_in(layer: nn.Module, shape: tuple[int, ...], *, num_subspaces: int = 4) -> nn.Module:  # noqa: ARG001
    """The module in the place of a residual block that keeps its shape; it does not start equal to the block.

    Args:
        layer: block to replace, such as timm's InvertedResidual.
        shape: shape of its input, (B, C, H, W).
        num_subspaces: g.

    Returns:
        The module.

    Raises:
        ValueError: an input that is no picture, or as many subspaces do not divide its channels.
    """
    if len(shape) != 4:
        raise ValueError(f"ulsam takes pictures, (B, C, H, W), got an input of shape {shape}")
    return ULSAM(shape[1], num_subspaces=num_subspaces)


def _inputs(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, logits = (torch.randn(shape, generator=generator) for shape in ((2, 12, 5, 7), (2, 3, 5, 7)))
    return {"x": x, "maps": subspace_maps(logits)}


METHOD = Method(
    id=189,
    name="ULSAM",
    kind="operator",
    summary="Groups of channels are each weighted by an attention map of their own, at two weights per channel.",
    paper=Paper(
        "ULSAM: Ultra-Lightweight Subspace Attention Module for Compact Convolutional Neural Networks",
        "R. Saini et al.",
        2020,
        "arXiv:2006.15102",
    ),
    cases={"three_subspaces": Operator(subspace_attention, subspace_attention_reference, _inputs)},
)
