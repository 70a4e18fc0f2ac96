"""SESR: wide linear blocks while training, one small convolution each afterwards.

*Source*: K. Bhardwaj et al., "Collapsible Linear Blocks for Super-Efficient Super Resolution", MLSys 2022
(arXiv:2103.09404), sections 3 and 4. A 5×5 block to f features, m 3×3 blocks each with a short residual and a PReLU, a
residual from the first features to the last, a 5×5 block to s² channels, the input added to each of them, depth to
space:

    features₀ = block₅(x - ½);  featuresᵢ = PReLU(block₃(featuresᵢ₋₁) + featuresᵢ₋₁)
    out = shuffle(block₅(featuresₘ + features₀) + x)

Every block is a k×k convolution to p = 256 channels and a 1×1 convolution back. It is multiplied out, residual
included, before the convolution of every training step (algorithms 1 and 2), so training costs as little as the
collapsed network; `expanded` computes it the long way.

*Differs from the paper*: takes RGB by default (`in_channels=1` is the paper's luminance); one shuffle by 4 where the
authors' code shuffles twice by 2, which numbers the last block's channels differently; no clipping of the output; the
last block starts near zero.

*Provenance*: written from the paper; the place of the PReLUs and the shift by ½ looked up in the authors' code.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.nn.collapsible import CollapsibleConv2d
from foveal.record import Method, Paper, equal, faster, kept, macs, params, smaller

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["SESR", "sesr_m3", "sesr_m5", "sesr_m7", "sesr_m11", "sesr_xl"]


class SESR(nn.Module):
    """Super-resolution network, (B, C, H, W) to (B, C, s·H, s·W); values in [0, 1].

    Args:
        scale: s, at least 1.
        features: f, width of the collapsed network.
        depth: m, 3×3 blocks.
        expand: p, width inside a block while training.
        in_channels: C, 3 for RGB or 1 for luminance.

    Raises:
        ValueError: a scale below 1.
    """

    def __init__(
        self, scale: int = 2, *, features: int = 16, depth: int = 5, expand: int = 256, in_channels: int = 3
    ) -> None:
        super().__init__()
        if scale < 1:
            raise ValueError(f"scale must be at least 1, got {scale}")
        self.scale = scale
        self.first = CollapsibleConv2d(in_channels, features, 5, expand=expand, bias=False)
        self.blocks = nn.ModuleList(
            CollapsibleConv2d(features, features, 3, expand=expand, residual=True, bias=False) for _ in range(depth)
        )
        self.activations = nn.ModuleList(nn.PReLU(features) for _ in range(depth))
        self.last = CollapsibleConv2d(features, in_channels * scale**2, 5, expand=expand, bias=False)
        with torch.no_grad():
            self.last.narrow.mul_(0.1)

    @property
    def margin(self) -> int:
        """Radius of the receptive field in input pixels."""
        return len(self.blocks) + 4

    def _through(self, x: Tensor, maps: Sequence[Callable[[Tensor], Tensor]]) -> Tensor:
        first, *middle, last = maps
        begin = features = first(x - 0.5)
        for block, activation in zip(middle, self.activations, strict=True):
            features = activation(block(features))
        # (B, C·s², H, W)
        out = last(features + begin) + x.repeat_interleave(self.scale**2, dim=1)
        return F.pixel_shuffle(out, self.scale)

    def forward(self, x: Tensor) -> Tensor:
        return self._through(x, [self.first, *self.blocks, self.last])

    def expanded(self, x: Tensor) -> Tensor:
        """The forward pass with every block as two convolutions, for comparison.

        Args:
            x: picture, (B, C, H, W).

        Returns:
            The same as the forward pass, (B, C, s·H, s·W), up to rounding.
        """
        return self._through(x, [block.expanded for block in (self.first, *self.blocks, self.last)])  # type: ignore[misc, operator]

    def collapse(self) -> SESR:
        """The same network with one plain convolution per block.

        Returns:
            A copy whose `first`, `blocks` and `last` are `nn.Conv2d`; it has no `expanded` any more.
        """
        network = copy.deepcopy(self)
        network.first = self.first.collapse()  # type: ignore[assignment]
        network.last = self.last.collapse()  # type: ignore[assignment]
        network.blocks = nn.ModuleList(block.collapse() for block in self.blocks)  # type: ignore[misc, operator]
        return network


def sesr_m3(scale: int = 2, *, in_channels: int = 3, expand: int = 256) -> SESR:
    """Three 3×3 blocks of 16 features.

    Args:
        scale: s.
        in_channels: C.
        expand: p.

    Returns:
        The network, to be collapsed after training.
    """
    return SESR(scale, features=16, depth=3, expand=expand, in_channels=in_channels)


def sesr_m5(scale: int = 2, *, in_channels: int = 3, expand: int = 256) -> SESR:
    """Five 3×3 blocks of 16 features.

    Args:
        scale: s.
        in_channels: C.
        expand: p.

    Returns:
        The network, to be collapsed after training.
    """
    return SESR(scale, features=16, depth=5, expand=expand, in_channels=in_channels)


def sesr_m7(scale: int = 2, *, in_channels: int = 3, expand: int = 256) -> SESR:
    """Seven 3×3 blocks of 16 features.

    Args:
        scale: s.
        in_channels: C.
        expand: p.

    Returns:
        The network, to be collapsed after training.
    """
    return SESR(scale, features=16, depth=7, expand=expand, in_channels=in_channels)


def sesr_m11(scale: int = 2, *, in_channels: int = 3, expand: int = 256) -> SESR:
    """Eleven 3×3 blocks of 16 features.

    Args:
        scale: s.
        in_channels: C.
        expand: p.

    Returns:
        The network, to be collapsed after training.
    """
    return SESR(scale, features=16, depth=11, expand=expand, in_channels=in_channels)


def sesr_xl(scale: int = 2, *, in_channels: int = 3, expand: int = 256) -> SESR:
    """Eleven 3×3 blocks of 32 features.

    Args:
        scale: s.
        in_channels: C.
        expand: p.

    Returns:
        The network, to be collapsed after training.
    """
    return SESR(scale, features=32, depth=11, expand=expand, in_channels=in_channels)


def _kernels(build: Callable[..., SESR]) -> nn.Module:
    """The collapsed convolutions alone: the paper's counts leave out the PReLU slopes, f of them a block."""
    network = build(2, in_channels=1).collapse()
    return nn.ModuleList([network.first, *network.blocks, network.last])


def _collapsing(*, collapsed: bool) -> Tensor:
    torch.manual_seed(0)
    network, x = sesr_m5(2, in_channels=1), torch.rand(2, 1, 33, 47)
    with torch.inference_mode():
        return network.collapse()(x) if collapsed else network.expanded(x)


class _Expanded(nn.Module):
    def __init__(self, network: SESR) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network.expanded(x)


def _training_macs(model: nn.Module) -> float:
    from foveal.measure.cost import count_macs

    return float(count_macs(model, (32, 1, 64, 64)))


def _fsrcnn() -> nn.Module:
    """FSRCNN with d = 56, s = 12, m = 4 at ×2 (arXiv:1608.00367), the network the paper compares with."""
    shapes = [(1, 56, 5), (56, 12, 1), (12, 12, 3), (12, 12, 3), (12, 12, 3), (12, 12, 3), (12, 56, 1)]
    layers: list[nn.Module] = []
    for inputs, outputs, k in shapes:
        layers += [nn.Conv2d(inputs, outputs, k, padding=k // 2), nn.PReLU(outputs)]
    return nn.Sequential(*layers, nn.ConvTranspose2d(56, 1, 9, stride=2, padding=4, output_padding=1)).eval()


def _timed(model: nn.Module) -> Callable[[], Any]:
    x = torch.rand(1, 1, 360, 640)

    def call() -> Tensor:
        with torch.inference_mode():
            return model(x)

    return call


def _gain(seed: int) -> float:
    from foveal.train.brief import gain, trained

    model = trained(sesr_m5, 2, steps=2000, seed=seed, luminance=True)
    assert isinstance(model, SESR)
    return gain(model.collapse(), 2, luminance=True)


METHOD = Method(
    id=216,
    name="SESR",
    kind="model",
    summary="Wide linear blocks while training that collapse to one small convolution each.",
    paper=Paper(
        "Collapsible Linear Blocks for Super-Efficient Super Resolution", "K. Bhardwaj et al.", 2022, "arXiv:2103.09404"
    ),
    models={"sesr_m3": sesr_m3, "sesr_m5": sesr_m5, "sesr_m7": sesr_m7, "sesr_m11": sesr_m11, "sesr_xl": sesr_xl},
    cases={
        "sesr_m3": {"scale": 2, "expand": 8},
        "sesr_m5": {"scale": 2, "expand": 8, "in_channels": 1},
        "sesr_m7": {"scale": 3, "expand": 8},
        "sesr_m11": {"scale": 4, "expand": 8, "in_channels": 1},
        "sesr_xl": {"scale": 2, "expand": 8, "in_channels": 1},
    },
    claims=(
        macs(
            "M5 in training, a batch of 32 pictures of 64×64, as two convolutions a block.",
            paper="41.77 G",
            model=lambda: _Expanded(sesr_m5(2, in_channels=1)),
            shape=(32, 1, 64, 64),
            expect=41_775_267_840,
        ),
        smaller(
            "Multiplied out before each training step, the same forward pass takes a twentieth of that.",
            paper="22.7 times, 1.84 G",
            ours=lambda: _training_macs(sesr_m5(2, in_channels=1)),
            theirs=lambda: _training_macs(_Expanded(sesr_m5(2, in_channels=1))),
            at_least=22.7,
        ),
        params("M5 ×2, collapsed.", paper="13.52 K", model=lambda: _kernels(sesr_m5), expect=13_520),
        params("M11 ×2, collapsed.", paper="27.34 K", model=lambda: _kernels(sesr_m11), expect=27_344),
        params("XL ×2, collapsed.", paper="105.37 K", model=lambda: _kernels(sesr_xl), expect=105_376),
        macs(
            "M5 ×2 to 1280×720, collapsed.",
            paper="3.11 G",
            model=lambda: sesr_m5(2, in_channels=1).collapse(),
            shape=(1, 1, 360, 640),
            expect=3_115_008_000,
        ),
        equal(
            "The collapsed network equals the expanded one.",
            ours=lambda: _collapsing(collapsed=True),
            theirs=lambda: _collapsing(collapsed=False),
            tolerance=1e-4,
        ),
        faster(
            "M5 ×2 takes less processor time than FSRCNN, 640×360 to 1280×720.",
            paper="1.5 to 2 times on a phone",
            ours=lambda: _timed(sesr_m5(2, in_channels=1).collapse().eval()),
            theirs=lambda: _timed(_fsrcnn()),
        ),
        kept(
            "After a minute of training, M5 ×2 is at least 1 dB above bicubic on pictures it has not seen.",
            paper="37.39 dB on Set5, trained for days",
            quality=_gain,
            at_least=1.0,
            data="trained on BSDS500 without BSD100; Set5, Set14 and BSD100, ×2, luminance, shave 2",
            needs=("minutes", "bsds400", "Set5", "Set14", "BSD100"),
        ),
    ),
)
