"""ResNeXt's block: a residual that sums C narrow bottlenecks of one shape, computed by one grouped convolution.

*Source*: S. Xie et al., "Aggregated Residual Transformations for Deep Neural Networks", CVPR 2017 (arXiv:1611.05431),
sections 3.3 and 3.4, equations 2 to 4, figure 3 and table 2. C is the cardinality, d the width of a path. For
x: (B, M, H, W)

    y = relu(x + Σᵢ Tᵢ(x)),   Tᵢ(x) = Eᵢ relu(Kᵢ ∗ relu(Rᵢ x)),   i = 1 … C

with Rᵢ: (d, M), Kᵢ: (d, d, 3, 3) and Eᵢ: (N, d), takes C·(M·d + 9·d² + d·N) weights. Three forms give the same:

    (a) split, transform, sum       Σᵢ Eᵢ relu(Kᵢ ∗ relu(Rᵢ x))
    (b) early concatenation         E concatᵢ(relu(Kᵢ ∗ relu(Rᵢ x)))          E: (N, C·d)
    (c) grouped convolution         E relu(K ∗_C relu(R x))                   R: (C·d, M), K: (C·d, d, 3, 3)

*Differs from the paper*: nothing. Batch norms follow the three convolutions of (c); the last stands after the sum of
(a) and before the shortcut is added, as the paper's footnote says.

*Provenance*: written from the paper, with timm's parameter names. The networks (resnext50_32x4d and others) are timm's;
`use_aggregated_` puts the block of this file into them, and logits stay the same. The authors' code is Lua Torch for
GPUs and was read, not run: its forms B and C are (b) and (c), and its 1×1 convolution of the shortcut, stride in the
3×3 convolution and order of norms are those here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from foveal.cases import Operator
from foveal.record import Method, Paper

__all__ = [
    "ResNeXtBlock",
    "early_concatenation",
    "folded",
    "grouped_convolution",
    "matched_width",
    "split_transform_sum",
    "use_aggregated_",
]

Biases = tuple[Tensor, Tensor, Tensor]


def _paths(x: Tensor, reduce: Tensor, transform: Tensor, biases: Biases | None, stride: int) -> list[Tensor]:
    """What the paths compute before they expand, each (B, d, H', W')."""
    width, size = transform.shape[1:3]
    found = []
    for first in range(0, len(reduce), width):
        part = slice(first, first + width)
        inner, outer = (None, None) if biases is None else (biases[0][part], biases[1][part])
        y = torch.conv2d(x, reduce[part, :, None, None], inner).relu()
        found.append(torch.conv2d(y, transform[part], outer, stride, size // 2).relu())
    return found


def split_transform_sum(
    x: Tensor, reduce: Tensor, transform: Tensor, expand: Tensor, *, biases: Biases | None = None, stride: int = 1
) -> Tensor:
    """Form (a): C bottlenecks, summed.

    Args:
        x: (B, M, H, W); the border of what the paths convolve is padded with zeros.
        reduce: R of all paths, (C·d, M).
        transform: K of all paths, (C·d, d, k, k) with odd k.
        expand: E of all paths, (N, C·d).
        biases: of the three layers, (C·d,), (C·d,) and (N,); None for none. The last is added to the sum once.
        stride: of the middle convolution.

    Returns:
        The residual, (B, N, H', W'), without the shortcut.
    """
    paths = _paths(x, reduce, transform, biases, stride)
    terms = zip(paths, expand.split(transform.shape[1], 1), strict=True)
    total = sum(torch.conv2d(y, weight[..., None, None]) for y, weight in terms)
    out = total if biases is None else total + biases[2][:, None, None]
    return torch.as_tensor(out)


def early_concatenation(
    x: Tensor, reduce: Tensor, transform: Tensor, expand: Tensor, *, biases: Biases | None = None, stride: int = 1
) -> Tensor:
    """Form (b): C bottlenecks whose narrow maps are concatenated and expanded together.

    Args:
        x: (B, M, H, W).
        reduce: (C·d, M).
        transform: (C·d, d, k, k) with odd k.
        expand: (N, C·d).
        biases: of the three layers, (C·d,), (C·d,) and (N,); None for none.
        stride: of the middle convolution.

    Returns:
        The residual, (B, N, H', W').
    """
    paths = torch.cat(_paths(x, reduce, transform, biases, stride), 1)
    return torch.conv2d(paths, expand[..., None, None], None if biases is None else biases[2])


def grouped_convolution(
    x: Tensor, reduce: Tensor, transform: Tensor, expand: Tensor, *, biases: Biases | None = None, stride: int = 1
) -> Tensor:
    """Form (c): one bottleneck whose middle convolution has C groups.

    Args:
        x: (B, M, H, W).
        reduce: (C·d, M).
        transform: (C·d, d, k, k) with odd k.
        expand: (N, C·d).
        biases: of the three layers, (C·d,), (C·d,) and (N,); None for none.
        stride: of the middle convolution.

    Returns:
        The residual, (B, N, H', W').
    """
    inner, middle, outer = biases or (None, None, None)
    width, size = transform.shape[1:3]
    y = torch.conv2d(x, reduce[..., None, None], inner).relu()
    y = torch.conv2d(y, transform, middle, stride, size // 2, groups=len(transform) // width).relu()
    return torch.conv2d(y, expand[..., None, None], outer)


def matched_width(cardinality: int, *, dim: int = 256, width: int = 64) -> int:
    """Width of a path so that C paths have about the weights of one, equation 4.

    Args:
        cardinality: C.
        dim: channels into and out of the block, M = N.
        width: width of the one path, at C = 1.

    Returns:
        d, the nearest whole solution of C·(2·M·d + 9·d²) = 2·M·width + 9·width².

    Raises:
        ValueError: a cardinality below 1, or one so high that no path would have a channel.
    """
    if cardinality < 1:
        raise ValueError(f"cardinality must be at least 1, got {cardinality}")
    budget = (2 * dim * width + 9 * width**2) / cardinality
    found = round((-dim + (dim**2 + 9 * budget) ** 0.5) / 9)
    if not found:
        raise ValueError(f"cardinality {cardinality} leaves a path less than a channel; take a lower one or more width")
    return found


class ResNeXtBlock(nn.Module):
    """The block in form (c) with its norms and shortcut, (B, M, H, W) to (B, N, H', W').

    Args:
        in_channels: M.
        out_channels: N.
        cardinality: C.
        width: d, channels of a path.
        stride: of the 3×3 convolution and of the shortcut, which is a 1×1 convolution where the shape changes.

    Raises:
        ValueError: a cardinality or width below 1.
    """

    def __init__(self, in_channels: int, out_channels: int, *, cardinality: int, width: int, stride: int = 1) -> None:
        super().__init__()
        if cardinality < 1 or width < 1:
            raise ValueError(f"cardinality and width must be at least 1, got {cardinality} and {width}")
        inner = cardinality * width
        self.conv1, self.bn1 = nn.Conv2d(in_channels, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=cardinality, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn3(self.conv3(self.bn2(self.conv2(y)).relu()))
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


def folded(block: nn.Module) -> dict[str, Any]:
    """The arguments of the three forms from a block, its norms folded into weights and biases.

    Args:
        block: `ResNeXtBlock`, or timm's `Bottleneck`, in eval mode.

    Returns:
        `reduce`, `transform`, `expand`, `biases` and `stride`.

    Raises:
        ValueError: a block in training mode.
    """
    if block.training:
        raise ValueError("norms fold in eval mode, got a block in training mode; call block.eval() first")
    one: Any = block
    pairs = (one.conv1, one.bn1), (one.conv2, one.bn2), (one.conv3, one.bn3)
    first, second, third = (fuse_conv_bn_eval(conv, norm) for conv, norm in pairs)
    return {
        "reduce": first.weight[..., 0, 0],
        "transform": second.weight,
        "expand": third.weight[..., 0, 0],
        "biases": (first.bias, second.bias, third.bias),
        "stride": one.conv2.stride[0],
    }


def use_aggregated_(model: nn.Module) -> nn.Module:
    """Put the block of this file in the place of timm's, with the same weights.

    Args:
        model: a ResNet or ResNeXt of timm's with bottlenecks, changed in place. Blocks that have more than this file's,
            such as squeeze-and-excitation, stay.

    Returns:
        The model.
    """
    for parent in list(model.modules()):
        for name, block in list(parent.named_children()):
            theirs: Any = block
            if type(theirs).__name__ != "Bottleneck" or not isinstance(theirs.act3, nn.ReLU):
                continue
            if theirs.se is not None or theirs.drop_path is not None or theirs.dilation != 1:
                continue
            if any(not isinstance(part, nn.Identity) for part in (theirs.drop_block, theirs.aa)):
                continue
            conv = theirs.conv2
            if theirs.conv1.out_channels != conv.out_channels or conv.dilation != (1, 1):
                continue
            ours = ResNeXtBlock(
                theirs.conv1.in_channels,
                theirs.conv3.out_channels,
                cardinality=conv.groups,
                width=conv.weight.shape[1],
                stride=conv.stride[0],
            )
            ours.downsample = theirs.downsample
            for part in ("bn1", "bn2", "bn3"):
                norm = getattr(theirs, part)
                getattr(ours, part).eps, getattr(ours, part).momentum = norm.eps, norm.momentum
            ours.load_state_dict(theirs.state_dict())
            setattr(parent, name, ours.to(conv.weight).train(theirs.training))
    return model


def _inputs(seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"x": (2, 5, 7, 6), "reduce": (6, 5), "transform": (6, 2, 3, 3), "expand": (4, 6)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()} | {"stride": 2}


METHOD = Method(
    id=174,
    name="ResNeXt",
    kind="operator",
    summary="A residual sums many narrow bottlenecks of one shape, computed by one grouped convolution.",
    paper=Paper(
        "Aggregated Residual Transformations for Deep Neural Networks", "S. Xie et al.", 2017, "arXiv:1611.05431"
    ),
    cases={"three_paths_of_two": Operator(grouped_convolution, split_transform_sum, _inputs)},
)
