"""QuickSRNet: a plain stack of 3×3 convolutions, initialised as if it had skip connections.

*Source*: G. Berger et al., "QuickSRNet: Plain Single-Image Super-Resolution Architecture for Faster Inference on Mobile
Platforms", CVPR workshops 2023 (arXiv:2303.04336), section 3. x₀ is the picture, (B, C, H, W), W the random weights:

    xᵢ₊₁ = clip((Wᵢ + I) ∗ xᵢ),   out = shuffle(clip((W + R) ∗ xₙ)),   clip to [0, 1]

Inner convolutions are initialised with the identity I added to their random weights, the last one (to C·s² channels)
with R, which repeats the first C channels s² times: training is residual, but only convolutions and clipping remain at
run time.

*Differs from the paper*: scale 1.5 is omitted. Layer sizes and the trainable 1×1 input-to-output connection of Large
are those of the authors' code. `folded=False` keeps the identities as explicit skip connections, which shows that
folding does not change the result; the paper trains folded.

*Provenance*: written from the paper; layer sizes were looked up in the authors' code.
"""

from __future__ import annotations

import copy
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.record import Method, Paper

__all__ = ["QuickSRNet", "identity_start", "quicksrnet_large", "quicksrnet_medium", "repeat_start"]


def identity_start(conv: nn.Conv2d) -> Tensor:
    """The addition to a convolution's weight that passes its input through: y = conv(x) + x.

    Args:
        conv: k×k convolution, k odd; the first min(C, C') channels pass through, nothing is added for the others.

    Returns:
        (C', C, k, k), zero but for ones at the centre.
    """
    added = torch.zeros_like(conv.weight)
    middle, passing = conv.kernel_size[0] // 2, range(min(conv.in_channels, conv.out_channels))
    added[passing, passing, middle, middle] = 1
    return added


def repeat_start(conv: nn.Conv2d, *, scale: int) -> Tensor:
    """The addition to the last weight that repeats its first channels over each s×s block: nearest-neighbour upscaling.

    Args:
        conv: convolution to C·s² channels, before a pixel shuffle.
        scale: s.

    Returns:
        (C·s², C', k, k), zero but for ones at the centre.
    """
    added = torch.zeros_like(conv.weight)
    middle, out = conv.kernel_size[0] // 2, torch.arange(conv.out_channels)
    added[out, out // scale**2, middle, middle] = 1
    return added


class QuickSRNet(nn.Module):
    """Super-resolution network, (B, C, H, W) to (B, C, s·H, s·W); values in [0, 1], clipped there.

    Args:
        scale: s, an integer of at least 1.
        channels: width of every hidden layer; at least C.
        depth: number of 3×3 convolutions between the first and the last.
        in_channels: C.
        direct: whether a trainable 1×1 convolution of the input, initialised as repetition, is added to the output,
            instead of initialising the last convolution as repetition (Large).
        folded: whether identities are folded into the weights (the paper) or explicit skip connections.

    Raises:
        ValueError: if the scale is below 1, or there are fewer hidden channels than C.
    """

    def __init__(
        self,
        scale: int = 2,
        *,
        channels: int = 32,
        depth: int = 2,
        in_channels: int = 3,
        direct: bool = False,
        folded: bool = True,
    ) -> None:
        super().__init__()
        if scale < 1:
            raise ValueError(f"scale must be at least 1, got {scale}")
        if channels < in_channels:
            raise ValueError(f"channels must be at least in_channels = {in_channels}, got {channels}")
        self.scale = scale
        widths = [in_channels] + [channels] * (depth + 1)
        self.body = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.last = nn.Conv2d(channels, in_channels * scale**2, 3, padding=1)
        self.direct = nn.Conv2d(in_channels, in_channels * scale**2, 1) if direct else None
        if self.direct is not None:
            nn.init.zeros_(self.direct.weight)
            assert self.direct.bias is not None
            nn.init.zeros_(self.direct.bias)
            with torch.no_grad():
                self.direct.weight.add_(repeat_start(self.direct, scale=scale))
        self.folded = False
        if folded:
            self._fold_()

    @property
    def margin(self) -> int:
        """Radius of the receptive field in input pixels."""
        return len(self.body) + 1

    @torch.no_grad()
    def _fold_(self) -> None:
        for conv in self.body:
            conv.weight.add_(identity_start(conv))  # type: ignore[arg-type, operator]
        if self.direct is None:
            self.last.weight.add_(repeat_start(self.last, scale=self.scale))
        self.folded = True

    def fold(self) -> QuickSRNet:
        """The same network with its skip connections folded into the weights.

        Returns:
            A folded copy; only Large's 1×1 connection stays separate.
        """
        network = copy.deepcopy(self)
        if not network.folded:
            network._fold_()
        return network

    def forward(self, x: Tensor) -> Tensor:
        features = x
        for conv in self.body:
            out = conv(features)
            if not self.folded:
                out = out + F.pad(features, (0, 0, 0, 0, 0, out.shape[1] - features.shape[1]))
            features = out.clamp(0, 1)
        out = self.last(features)
        if self.direct is not None:
            out = out + self.direct(x)
        elif not self.folded:
            out = out + features[:, : x.shape[1]].repeat_interleave(self.scale**2, dim=1)
        # (B, C·s², H, W) to (B, C, s·H, s·W)
        return F.pixel_shuffle(out.clamp(0, 1), self.scale)


# The paper's Small is `QuickSRNet` itself: two inner layers of 32 channels.
quicksrnet_medium = partial(QuickSRNet, depth=5)  # Medium
quicksrnet_large = partial(QuickSRNet, channels=64, depth=11, direct=True)  # Large


METHOD = Method(
    id=173,
    name="QuickSRNet",
    kind="model",
    summary="A plain stack of 3×3 convolutions, clipped to [0, 1], that starts as if it had skip connections.",
    paper=Paper(
        "QuickSRNet: Plain Single-Image Super-Resolution Architecture for Faster Inference on Mobile Platforms",
        "G. Berger et al.",
        2023,
        "arXiv:2303.04336",
    ),
    models={
        "quicksrnet_small": QuickSRNet,
        "quicksrnet_medium": quicksrnet_medium,
        "quicksrnet_large": quicksrnet_large,
    },
    cases={
        "quicksrnet_small": {"scale": 2, "channels": 4},
        "quicksrnet_medium": {"scale": 3, "channels": 4},
        "quicksrnet_large": {"scale": 2, "channels": 4, "in_channels": 1},
    },
)
