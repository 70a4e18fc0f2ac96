"""MobileNet's depthwise separable convolution: one filter per channel, then a 1×1 convolution that mixes the channels.

*Source*: A. G. Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications",
2017 (arXiv:1704.04861), section 3.1, equations 1 to 5, table 1 and figure 3; multipliers: sections 3.3 and 3.4. For x:
(B, M, H, W), with the batch norms folded into the weights,

    y = relu(P relu(D ∗ x + a) + b)                  D: (M, 1, k, k), depthwise; P: (N, M); a: (M,); b: (N,)

takes H'·W'·(k²·M + M·N) multiply-adds for H'×W' pixels out, which is 1/N + 1/k² of the full convolution's
H'·W'·k²·M·N. Without the inner relu and biases both are one map: the full convolution whose kernels are
K[n, m] = P[n, m]·D[m]. The network is a full 3×3 convolution of stride 2 and 13 such blocks, without skips, then the
mean over all pixels and a linear layer. A width multiplier α scales all channels, a resolution multiplier ρ the side of
the picture; cost falls by about α² and by ρ².

*Differs from the paper*: strides follow the sizes of the maps that table 1 prints; for its last block it prints stride
2 with maps of 7×7 before and after, so the stride is 1, as in timm and in the authors' code.

*Provenance*: written from the paper, with timm's parameter names. `mobilenet` puts timm's network together with a width
multiplier, which timm's `mobilenetv1_100` does not take, and with the paper's ReLU in place of timm's ReLU6;
`use_separable_` puts the block of this file into timm's networks, and logits stay the same.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import EfficientNet
from timm.models._efficientnet_builder import decode_arch_def, round_channels
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from foveal.cases import Operator
from foveal.record import Method, Paper

__all__ = [
    "DepthwiseSeparable",
    "cost_ratio",
    "depthwise_separable",
    "depthwise_separable_reference",
    "fold_",
    "mobilenet",
    "use_separable_",
]

# Table 1 in timm's words: blocks, stride of the first, channels.
_BLOCKS = [
    ["dsa_r1_k3_s1_c64"],
    ["dsa_r2_k3_s2_c128"],
    ["dsa_r2_k3_s2_c256"],
    ["dsa_r6_k3_s2_c512"],
    ["dsa_r2_k3_s2_c1024"],
]
_STEM = 32


def depthwise_separable(
    x: Tensor,
    depthwise: Tensor,
    pointwise: Tensor,
    *,
    biases: tuple[Tensor, Tensor] | None = None,
    stride: int = 1,
    relu: bool = True,
) -> Tensor:
    """Filter each channel, then mix them.

    Args:
        x: (B, M, H, W); the border is padded with zeros.
        depthwise: D, a filter for each channel, (M, 1, k, k) with odd k.
        pointwise: P, (N, M).
        biases: a and b, (M,) and (N,); None for none.
        stride: pixels from one output to the next.
        relu: whether a ReLU follows each of the two; without, the result is linear in x.

    Returns:
        (B, N, H', W').
    """
    inner, outer = biases or (None, None)
    padding = depthwise.shape[-1] // 2
    y = torch.conv2d(x, depthwise, inner, stride, padding, groups=len(depthwise))
    y = torch.conv2d(y.relu() if relu else y, pointwise[..., None, None], outer)
    return y.relu() if relu else y


def depthwise_separable_reference(
    x: Tensor,
    depthwise: Tensor,
    pointwise: Tensor,
    *,
    biases: tuple[Tensor, Tensor] | None = None,
    stride: int = 1,
    relu: bool = True,
) -> Tensor:
    """The same tap by tap, equations 3 and 1 of the paper as sums.

    Args:
        x: (B, M, H, W).
        depthwise: (M, 1, k, k).
        pointwise: (N, M).
        biases: (M,) and (N,).
        stride: pixels from one output to the next.
        relu: whether a ReLU follows each of the two.

    Returns:
        (B, N, H', W').
    """
    size = depthwise.shape[-1]
    inner, outer = biases or (x.new_zeros(len(depthwise)), x.new_zeros(len(pointwise)))
    height, width = ((side - 1) // stride + 1 for side in x.shape[2:])
    padded = F.pad(x, [size // 2] * 4)
    y = inner[:, None, None].expand(len(x), -1, height, width)
    for i in range(size):
        for j in range(size):
            seen = padded[..., i : i + x.shape[2] : stride, j : j + x.shape[3] : stride]
            y = y + depthwise[:, :, i, j, None] * seen
    y = torch.einsum("nm,bmhw->bnhw", pointwise, y.clamp(min=0) if relu else y) + outer[:, None, None]
    return y.clamp(min=0) if relu else y


def cost_ratio(out_channels: int, kernel_size: int = 3) -> float:
    """Multiply-adds of a depthwise separable convolution over those of the full one, equation 5 over equation 2.

    Args:
        out_channels: N.
        kernel_size: k.

    Returns:
        1/N + 1/k².
    """
    return 1 / out_channels + 1 / kernel_size**2


class DepthwiseSeparable(nn.Module):
    """Two convolutions, each with batch norm and ReLU: (B, M, H, W) to (B, N, H', W').

    Args:
        in_channels: M.
        out_channels: N.
        kernel_size: k, odd.
        stride: pixels from one output to the next.
        act_layer: builder of the activation.

    Raises:
        ValueError: an even kernel.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 3,
        stride: int = 1,
        act_layer: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}; take {kernel_size + 1}")
        self.conv_dw = nn.Conv2d(
            in_channels, in_channels, kernel_size, stride, kernel_size // 2, groups=in_channels, bias=False
        )
        self.bn1: nn.Module = nn.BatchNorm2d(in_channels)
        self.conv_pw = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn2: nn.Module = nn.BatchNorm2d(out_channels)
        self.act = act_layer()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn1(self.conv_dw(x)))
        return self.act(self.bn2(self.conv_pw(x)))


def mobilenet(alpha: float = 1.0, *, in_channels: int = 3, num_classes: int = 1000) -> nn.Module:
    """MobileNet of table 1, (B, in_channels, H, W) to (B, num_classes), any height and width.

    Args:
        alpha: width multiplier α, above 0; channels are rounded to multiples of 8. The paper's are 1, 0.75, 0.5, 0.25.
        in_channels: number of channels of the picture.
        num_classes: number of classes; 0 returns pooled features.

    Returns:
        timm's network with the blocks of this file and randomly initialised weights.

    Raises:
        ValueError: a multiplier that is not above 0.
    """
    if alpha <= 0:
        raise ValueError(f"alpha must be above 0, got {alpha}; the paper's are 1, 0.75, 0.5 and 0.25")
    network = EfficientNet(
        decode_arch_def(_BLOCKS),
        num_features=0,
        stem_size=_STEM,
        round_chs_fn=partial(round_channels, multiplier=alpha),
        act_layer=nn.ReLU,
        in_chans=in_channels,
        num_classes=num_classes,
    )
    return use_separable_(network)


def use_separable_(model: nn.Module) -> nn.Module:
    """Put the block of this file in the place of timm's, with the same weights.

    Args:
        model: a network of timm's with depthwise separable blocks, changed in place. Blocks that have more than this
            file's, such as a skip or squeeze-and-excitation, stay.

    Returns:
        The model.
    """
    for parent in list(model.modules()):
        for name, block in list(parent.named_children()):
            theirs: Any = block
            if type(theirs).__name__ != "DepthwiseSeparableConv" or theirs.has_skip or not theirs.has_pw_act:
                continue
            if any(not isinstance(part, nn.Identity) for part in (theirs.aa, theirs.se)) or theirs.conv_s2d is not None:
                continue
            dw = theirs.conv_dw
            size = dw.kernel_size[0]
            if dw.groups != dw.in_channels or dw.dilation != (1, 1) or dw.padding != (size // 2, size // 2):
                continue
            ours = DepthwiseSeparable(
                dw.in_channels,
                theirs.conv_pw.out_channels,
                kernel_size=size,
                stride=dw.stride[0],
                act_layer=type(theirs.bn1.act),
            )
            for part, norm in ((ours.bn1, theirs.bn1), (ours.bn2, theirs.bn2)):
                part.eps, part.momentum = norm.eps, norm.momentum
            ours.load_state_dict(theirs.state_dict())
            setattr(parent, name, ours.to(dw.weight).train(theirs.training))
    return model


def fold_(model: nn.Module) -> nn.Module:
    """Fold the batch norms of all blocks of this file into the convolutions before them, for use after training.

    Args:
        model: a network in eval mode, changed in place.

    Returns:
        The model.

    Raises:
        ValueError: a block in training mode.
    """
    for block in [module for module in model.modules() if isinstance(module, DepthwiseSeparable)]:
        if block.training:
            raise ValueError("norms fold in eval mode, got a block in training mode; call model.eval() first")
        if isinstance(block.bn1, nn.BatchNorm2d) and isinstance(block.bn2, nn.BatchNorm2d):
            block.conv_dw = fuse_conv_bn_eval(block.conv_dw, block.bn1)
            block.conv_pw = fuse_conv_bn_eval(block.conv_pw, block.bn2)
            block.bn1, block.bn2 = nn.Identity(), nn.Identity()
    return model


def _inputs(seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"x": (2, 5, 6, 7), "depthwise": (5, 1, 3, 3), "pointwise": (4, 5)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()} | {"stride": 2}


METHOD = Method(
    id=107,
    name="MobileNetV1",
    kind="operator",
    summary="A full convolution becomes one filter per channel and a 1×1 convolution that mixes the channels.",
    paper=Paper(
        "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications",
        "A. G. Howard et al.",
        2017,
        "arXiv:1704.04861",
    ),
    cases={"five_to_four": Operator(depthwise_separable, depthwise_separable_reference, _inputs)},
)
